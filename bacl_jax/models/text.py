"""Text tower: token ids [B, T] to pooled [B, D] and text tokens [B, T, C]."""

import jax
from flax import nnx
from jaxtyping import Array, Bool, Int

from bacl_jax.config import ModelConfig
from bacl_jax.models.layers import Block, l2_normalise, pool, run_blocks
from bacl_jax.types import Features


class TextTransformer(nnx.Module):
    """Bidirectional pre-norm transformer with learned positions; pools the mean of the valid tokens."""

    def __init__(self, model: ModelConfig, vocab_size: int, context_length: int, *, dtype, rngs: nnx.Rngs):
        config, self.model = model.text, model
        c = config.width
        self.dtype = dtype
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocab_size, c)))
        self.positions = nnx.Param(0.01 * jax.random.normal(rngs.params(), (context_length, c)))
        self.blocks = nnx.List([Block(c, config.heads, config.mlp_ratio, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.norm = nnx.LayerNorm(c, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(c, model.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Features:
        x = (self.embedding[...][ids] + self.positions[...][None, : ids.shape[1]]).astype(self.dtype)
        x = self.norm(run_blocks(self.blocks, x, mask, self.model))
        return Features(pooled=l2_normalise(self.head(pool(x, mask))), tokens=x, mask=mask)
