"""Text towers: token ids [B, T] and their mask to pooled [B, D] and text tokens [B, T, C]."""

import jax
from flax import nnx
from jaxtyping import Array, Bool, Int

from bacl_jax.config import ModelConfig
from bacl_jax.models.bert import BertText
from bacl_jax.models.clip import ClipText
from bacl_jax.models.layers import Block, Tower, pool, run_blocks
from bacl_jax.models.siglip import SiglipText
from bacl_jax.types import Trunk


class TextTransformer(Tower):
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

    def trunk(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Trunk:
        x = (self.embedding[...][ids] + self.positions[...][None, : ids.shape[1]]).astype(self.dtype)
        x = self.norm(run_blocks(self.blocks, x, mask, self.model))
        return Trunk(pooled=pool(x, mask), tokens=x)


TEXT_TOWERS = {"transformer": TextTransformer, "clip": ClipText, "siglip": SiglipText, "bert": BertText}
