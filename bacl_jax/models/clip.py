"""CLIP's towers (arXiv 2103.00020), as OpenAI, LAION and others have published their weights: see bacl_jax/interop."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int, UInt8

from bacl_jax.config_model import ModelConfig
from bacl_jax.models.layers import Block, Tower, run_blocks
from bacl_jax.models.pixels import Patches, normalise
from bacl_jax.models.text import TextTransformer
from bacl_jax.types import Trunk

EPSILON = 1e-5  # of every norm


class ClipImage(Tower):
    """Vision transformer with a class token, which is pooled, and a norm before the blocks. The last norm is of all tokens."""

    def __init__(self, model: ModelConfig, image_size: int, *, dtype, rngs: nnx.Rngs):
        config, self.model = model.image, model
        c, p = config.width, config.patch
        self.dtype, self.pixels = dtype, config.pixels
        self.stem = Patches(3, c, (p, p), strides=p, use_bias=False, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (c,)))
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1 + (image_size // p) ** 2, c)))
        self.norm_before = nnx.LayerNorm(c, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        shape = {"activation": config.activation, "epsilon": EPSILON, "dtype": dtype, "rngs": rngs}
        self.blocks = nnx.List([Block(c, config.heads, config.mlp_ratio, **shape) for _ in range(config.depth)])
        self.norm = nnx.LayerNorm(c, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(c, model.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def trunk(self, images: UInt8[Array, "B S S 3"]) -> Trunk:
        x = self.stem(normalise(images, self.pixels, self.dtype))
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first, x], 1) + self.positions.astype(x.dtype)[None]
        x = self.norm(run_blocks(self.blocks, self.norm_before(x), None, self.model))
        return Trunk(pooled=x[:, 0], tokens=x[:, 1:])


class ClipText(TextTransformer):
    """Causal transformer; pools the last valid token, which is the end of the text."""

    epsilon, causal = EPSILON, True

    def trunk(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Trunk:
        x = self.tokens(ids, mask)
        last = jnp.maximum(mask.sum(1) - 1, 0)
        return Trunk(pooled=jnp.take_along_axis(x, last[:, None, None], 1)[:, 0], tokens=x)
