"""CLA's cross-modal transformer: text tokens query the anchor's tokens (arXiv 2511.08399)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from bacl_jax.config import CLAConfig
from bacl_jax.models.layers import Block, pool
from bacl_jax.types import Features


class CrossModal(nnx.Module):
    """Returns A [B, T, P] (last layer, mean over heads, each row a softmax over P) and a matching logit [B].

    Text and anchor tokens of any width are projected to config.width. Anchor positions are
    learned here, so that any tower's tokens can be located.
    """

    def __init__(self, config: CLAConfig, text_width: int, anchor_width: int, anchor_tokens: int, *, dtype, rngs: nnx.Rngs):
        c = config.width
        self.dtype = dtype
        self.text_in = nnx.Linear(text_width, c, dtype=dtype, rngs=rngs)
        self.anchor_in = nnx.Linear(anchor_width, c, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(0.02 * nnx.initializers.normal(1.0)(rngs.params(), (anchor_tokens, c)))
        self.blocks = nnx.List([Block(c, config.heads, 2, context_width=c, dtype=dtype, rngs=rngs) for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(c, dtype=dtype, rngs=rngs)
        self.match = nnx.Linear(c, 1, dtype=dtype, rngs=rngs)

    def __call__(self, text: Features, anchor: Features) -> tuple[Float[Array, "B T P"], Float[Array, " B"]]:
        x = self.text_in(text.tokens.astype(self.dtype))
        context = self.anchor_in(anchor.tokens.astype(self.dtype)) + self.positions.astype(self.dtype)[None]
        x, weights = self.blocks[0](x, text.mask, context, anchor.mask)
        for block in self.blocks[1:]:
            x, weights = block(x, text.mask, context, anchor.mask)
        logit = self.match(pool(self.norm(x), text.mask))[:, 0]
        return weights.mean(1), logit.astype(jnp.float32)
