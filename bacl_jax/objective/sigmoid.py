"""Sigmoid loss (SigLIP, arXiv 2303.15343) with several positives, BNS weights and drawn columns."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def sigmoid_loss(
    logits: Float[Array, "B B"],
    positive: Bool[Array, "B B"],
    bias: Float[Array, ""],
    *,
    same_id: str = "positive",
    weight: Float[Array, "B B"] | None = None,
    drawn: tuple[Float[Array, "B E"], Bool[Array, "B E"]] | None = None,
) -> Float[Array, ""]:
    """L = -1/B sum_ij m_ij log sigmoid(y_ij (l_ij + b)); y = +1 on positives, else -1; m = 1 + k q_ic on candidates.

    With same_id = "mask" the only positive is the diagonal and the others have m = 0. Drawn columns have y = -1.
    """
    m = jnp.ones_like(logits) if weight is None else 1 + weight
    if same_id == "mask":
        own = jnp.eye(*positive.shape, dtype=bool)
        m, positive = jnp.where(positive & ~own, 0, m), own
    total = -(m * jax.nn.log_sigmoid(jnp.where(positive, 1, -1) * (logits + bias))).sum()
    if drawn is not None:
        extra, valid = drawn
        total -= jnp.where(valid, jax.nn.log_sigmoid(-(extra + bias)), 0).sum()
    return total / logits.shape[0]
