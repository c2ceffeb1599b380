"""Which rows belong together, and the similarity matrix: the one place that collectives and chunking belong to."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

MASKED = -1e9  # logit of an excluded entry: finite, so that a row without any entry keeps finite gradients


def same_id(a: UInt32[Array, "A 2"], b: UInt32[Array, "N 2"]) -> Bool[Array, "A N"]:
    """True where two 64-bit ids are equal."""
    return (a[:, None, 0] == b[None, :, 0]) & (a[:, None, 1] == b[None, :, 1])


def positives(
    caption: UInt32[Array, "A 2"], anchor: UInt32[Array, "A 2"], other_caption: UInt32[Array, "N 2"], other_anchor: UInt32[Array, "N 2"]
) -> Bool[Array, "A N"]:
    """positive(i, j) = same caption or same anchor."""
    return same_id(caption, other_caption) | same_id(anchor, other_anchor)


def cosine(z: Float[Array, "A D"], w: Float[Array, "N D"]) -> Float[Array, "A N"]:
    """s_ij = <z_i, w_j> in float32."""
    return jnp.einsum("ad,nd->an", z, w, preferred_element_type=jnp.float32)
