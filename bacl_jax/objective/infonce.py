"""Multi-positive InfoNCE, in log space, with the places where BNS enters: a weight per entry and extra columns."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bacl_jax.objective.similarity import MASKED


def direction(
    logits: Float[Array, "A N"],
    positive: Bool[Array, "A N"],
    *,
    same_id: str = "positive",
    weight: Float[Array, "A N"] | None = None,
    drawn: tuple[Float[Array, "A E"], Bool[Array, "A E"]] | None = None,
) -> Float[Array, " A"]:
    """L_i = -mean_{p in P_i} l_ip + log( sum_j (1 + weight_ij) e^{l_ij} + sum_e e^{drawn_ie} ), one value a row.

    logits:  square where `same_id` = "mask" (the diagonal is then the one positive and the others are left out).
    weight:  k q_ic on BNS's in-batch candidates, 0 elsewhere: channel (a), since
             logaddexp(LSE l, LSE(l + log kq)) = LSE(l + log(1 + kq)).
    drawn:   logits of re-encoded drawn captions, and False where one is a positive of the row: channel (b).
    """
    if same_id == "mask":
        own = jnp.eye(*positive.shape, dtype=bool)
        logits, positive = jnp.where(positive & ~own, MASKED, logits), own
    attraction = jnp.where(positive, logits, 0).sum(1) / positive.sum(1)
    if weight is not None:
        logits = logits + jnp.log1p(weight)
    if drawn is not None:
        extra, valid = drawn
        logits = jnp.concatenate([logits, jnp.where(valid, extra, MASKED)], axis=1)
    return jax.nn.logsumexp(logits, axis=1) - attraction


def floor(positive: Bool[Array, "A N"], same_id: str) -> Float[Array, ""]:
    """The smallest value the loss can take: mean log |P_i| (arXiv 2004.11362); 0 where other positives are left out."""
    return jnp.float32(0) if same_id == "mask" else jnp.log(positive.sum(1)).mean()
