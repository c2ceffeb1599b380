"""Text tower: token ids [B, T] and their mask to pooled [B, D] and text tokens [B, T, C]; what its published kin share with it."""

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from bacl_jax.config_model import ModelConfig
from bacl_jax.models.layers import Block, Tower, pool, run_blocks
from bacl_jax.types import Trunk


class TextTransformer(Tower):
    """Bidirectional pre-norm transformer with learned positions; pools the mean of the valid tokens."""

    epsilon, causal, head_bias = 1e-6, False, False

    def __init__(self, model: ModelConfig, vocab_size: int, context_length: int, *, dtype, rngs: nnx.Rngs):
        config, self.model = model.text, model
        c = config.width
        self.dtype = dtype
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocab_size, c)))
        self.positions = nnx.Param(0.01 * jax.random.normal(rngs.params(), (context_length, c)))
        shape = {"causal": self.causal, "activation": config.activation, "epsilon": self.epsilon, "dtype": dtype, "rngs": rngs}
        self.blocks = nnx.List([Block(c, config.heads, config.mlp_ratio, **shape) for _ in range(config.depth)])
        self.norm = nnx.LayerNorm(c, epsilon=self.epsilon, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(c, model.embed_dim, use_bias=self.head_bias, dtype=dtype, rngs=rngs)

    def tokens(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"] | None) -> Float[Array, "B T C"]:
        """After the last norm; mask: None attends to padding, too."""
        x = (self.embedding[...][ids] + self.positions[...][None, : ids.shape[1]]).astype(self.dtype)
        return self.norm(run_blocks(self.blocks, x, mask, self.model))

    def trunk(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Trunk:
        x = self.tokens(ids, mask)
        return Trunk(pooled=pool(x, mask), tokens=x)
