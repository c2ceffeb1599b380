"""BNS's policy: a score for each candidate (arXiv 2511.08399: a two-layer MLP)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Policy(nnx.Module):
    """pi_ic = c * tanh(MLP([z_i * w_c, s_ic, BS_ic])); bound c = None leaves the score unbounded.

    The first layer acts on z * w without forming [B, K, D + 2] twice. Scores are not centred here: that needs the mask.
    """

    def __init__(self, embed_dim: int, hidden: int, bound: float | None, *, rngs: nnx.Rngs):
        self.bound = bound
        self.product = nnx.Linear(embed_dim, hidden, rngs=rngs)
        self.scalars = nnx.Linear(2, hidden, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(hidden, 1, rngs=rngs)

    def __call__(
        self, anchor: Float[Array, "B D"], candidates: Float[Array, "B K D"], s: Float[Array, "B K"], boundary: Float[Array, "B K"]
    ) -> Float[Array, "B K"]:
        h = self.product(anchor[:, None] * candidates) + self.scalars(jnp.stack([s, boundary], -1))
        score = self.out(jax.nn.gelu(h))[..., 0]
        return score if self.bound is None else self.bound * jnp.tanh(score)
