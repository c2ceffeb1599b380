"""The towers of SigLIP and of SigLIP 2 at a fixed resolution (arXiv 2303.15343, 2502.14786), in which their weights are published."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int, UInt8

from bacl_jax.config_model import ModelConfig
from bacl_jax.models.layers import MLP, Attention, Block, Tower, run_blocks
from bacl_jax.models.pixels import Patches, normalise
from bacl_jax.models.text import TextTransformer
from bacl_jax.types import Trunk

EPSILON = 1e-6  # of every norm


class SiglipImage(Tower):
    """Vision transformer whose pooled output is what a learned query finds among the patches. It has no head: its width is embed_dim."""

    def __init__(self, model: ModelConfig, image_size: int, *, dtype, rngs: nnx.Rngs):
        config, self.model = model.image, model
        c, p = config.width, config.patch
        if c != model.embed_dim:
            raise ValueError(f"a siglip image tower has no head: model.image.width {c} must be model.embed_dim {model.embed_dim}")
        self.dtype, self.pixels = dtype, config.pixels
        self.stem = Patches(3, c, (p, p), strides=p, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), ((image_size // p) ** 2, c)))
        shape = {"activation": config.activation, "epsilon": EPSILON, "dtype": dtype, "rngs": rngs}
        self.blocks = nnx.List([Block(c, config.heads, config.mlp_ratio, **shape) for _ in range(config.depth)])
        self.norm = nnx.LayerNorm(c, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.query = nnx.Param(0.02 * jax.random.normal(rngs.params(), (c,)))
        self.pool_attention = Attention(c, config.heads, dtype=dtype, rngs=rngs)
        self.norm_pool = nnx.LayerNorm(c, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.pool_mlp = MLP(c, round(c * config.mlp_ratio), activation=config.activation, dtype=dtype, rngs=rngs)
        self.head = None

    def trunk(self, images: UInt8[Array, "B S S 3"]) -> Trunk:
        x = self.stem(normalise(images, self.pixels, self.dtype))
        x = self.norm(run_blocks(self.blocks, x + self.positions.astype(x.dtype)[None], None, self.model))
        query = jnp.broadcast_to(self.query[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        found = self.pool_attention(query, x)[0]
        return Trunk(pooled=(found + self.pool_mlp(self.norm_pool(found)))[:, 0], tokens=x)


class SiglipText(TextTransformer):
    """Bidirectional transformer that attends to padding as to any token, and pools the last position."""

    epsilon, head_bias = EPSILON, True

    def trunk(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Trunk:
        x = self.tokens(ids, None)
        return Trunk(pooled=x[:, -1], tokens=x)
