"""BNS's policy: a score for each candidate (arXiv 2511.08399: a two-layer MLP)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Policy(nnx.Module):
    """pi_ic = c * tanh(v . gelu((P z_i) * (Q w_c) + U [s_ic, BS_ic] + b)); bound c = None leaves the score unbounded.

    The first layer sees the pair through a low-rank bilinear product (arXiv 1610.04325): columns are projected before they are
    picked, so that [B, K, D] never exists. Memory O(B K hidden), work O((B + N) D hidden). v starts at 0: at first the
    schedule alone draws. Scores are not centred here: that needs the mask.
    """

    def __init__(self, embed_dim: int, hidden: int, bound: float | None, *, rngs: nnx.Rngs):
        unit = nnx.initializers.normal(1.0)  # embeddings have length 1: projections of order 1
        self.bound = bound
        self.anchor = nnx.Linear(embed_dim, hidden, use_bias=False, kernel_init=unit, rngs=rngs)
        self.column = nnx.Linear(embed_dim, hidden, use_bias=False, kernel_init=unit, rngs=rngs)
        self.scalars = nnx.Linear(2, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, 1, use_bias=False, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(
        self,
        anchor: Float[Array, "B D"],
        columns: Float[Array, "N D"],
        pick: Callable[[Array], Array],
        s: Float[Array, "B K"],
        boundary: Float[Array, "B K"],
    ) -> Float[Array, "B K"]:
        """`pick`: of an array [N, H] the rows of the candidates, [B, K, H]."""
        pair = self.anchor(anchor)[:, None] * pick(self.column(columns))
        score = self.out(jax.nn.gelu(pair + self.scalars(jnp.stack([s, boundary], -1))))[..., 0]
        return score if self.bound is None else self.bound * jnp.tanh(score)
