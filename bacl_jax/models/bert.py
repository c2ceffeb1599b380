"""BERT's text tower (arXiv 1810.04805), such as MiniLM's (arXiv 2002.10957) with the mean pooling of sentence-transformers."""

import jax
from flax import nnx
from jaxtyping import Array, Bool, Int

from bacl_jax.config_model import ModelConfig
from bacl_jax.models.layers import PostNormBlock, Tower, pool, run_blocks
from bacl_jax.types import Trunk

EPSILON = 1e-12  # of every norm


class BertText(Tower):
    """Bidirectional transformer that normalises after each sum; pools the mean of the valid tokens. The head is not BERT's own."""

    def __init__(self, model: ModelConfig, vocab_size: int, context_length: int, *, dtype, rngs: nnx.Rngs):
        config, self.model = model.text, model
        c = config.width
        self.dtype = dtype
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocab_size, c)))
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (context_length, c)))
        self.segment = nnx.Param(0.02 * jax.random.normal(rngs.params(), (2, c)))  # a caption is all of the first segment
        self.norm_embedding = nnx.LayerNorm(c, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        shape = {"activation": config.activation, "epsilon": EPSILON, "dtype": dtype, "rngs": rngs}
        self.blocks = nnx.List([PostNormBlock(c, config.heads, config.mlp_ratio, **shape) for _ in range(config.depth)])
        self.head = nnx.Linear(c, model.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def trunk(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Trunk:
        x = self.embedding[...][ids] + self.positions[...][None, : ids.shape[1]] + self.segment[...][None, :1]
        x = run_blocks(self.blocks, self.norm_embedding(x.astype(self.dtype)), mask, self.model)
        return Trunk(pooled=pool(x, mask), tokens=x)
