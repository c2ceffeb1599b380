"""CLA's cross-modal transformer: text tokens query the anchor's tokens (arXiv 2511.08399)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from bacl_jax.config_objective import CLAConfig
from bacl_jax.models.layers import Block, by_rows, l2_normalise, pool
from bacl_jax.types import Features

INIT_SCALE, INIT_BIAS = 10.0, -5.0  # of the matching logit: a mean cosine in [-1, 1] starts as a logit in [-15, 5]


class CrossModal(nnx.Module):
    """Returns A [B, T, P] (last layer, mean over heads, each row a softmax over P) and a matching logit [B].

    Text and anchor tokens of any width are projected to config.width. No positions are added: attention can then settle
    on what a patch shows and on nothing else. The logit compares each word with what it found, as late interaction does
    (arXiv 2111.07783): scale * mean_t cos(word_t, found_t) + bias.
    """

    def __init__(self, config: CLAConfig, text_width: int, anchor_width: int, *, dtype, rngs: nnx.Rngs):
        c = config.width
        self.dtype = dtype
        self.text_in = nnx.Linear(text_width, c, dtype=dtype, rngs=rngs)
        self.anchor_in = nnx.Linear(anchor_width, c, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(c, config.heads, 2, context_width=c, dtype=dtype, rngs=rngs) for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(c, dtype=dtype, rngs=rngs)
        self.word = nnx.Linear(c, c, dtype=dtype, rngs=rngs)
        self.found = nnx.Linear(c, c, dtype=dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.log(jnp.float32(INIT_SCALE)))
        self.bias = nnx.Param(jnp.float32(INIT_BIAS))

    def __call__(self, text: Features, anchor: Features) -> tuple[Float[Array, "B T P"], Float[Array, " B"]]:
        assert text.tokens is not None
        assert anchor.tokens is not None
        words = by_rows(self.text_in(text.tokens.astype(self.dtype)))
        context = by_rows(self.anchor_in(anchor.tokens.astype(self.dtype)))
        x, weights = words, None
        for block in self.blocks:
            x, weights = block(x, text.mask, context, anchor.mask)
        assert weights is not None
        agreement = l2_normalise(self.word(words)) * l2_normalise(self.found(self.norm(x)))
        return weights.mean(1), jnp.exp(self.scale[...]) * pool(agreement, text.mask).sum(-1) + self.bias[...]
