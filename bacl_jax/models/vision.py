"""Image towers: uint8 images [B, S, S, 3] to pooled [B, D] and patch tokens [B, P, C], P = (S / patch)^2, row-major."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, UInt8

from bacl_jax.config_model import ModelConfig
from bacl_jax.models.layers import Block, Tower, pool, run_blocks
from bacl_jax.models.pixels import Patches, normalise
from bacl_jax.types import Trunk

SMALL_GRID = 4  # positions


def convolve(x: Float[Array, "B H W C"], kernel: Float[Array, "h w C D"], strides: tuple[int, int], padding: str, **others) -> Array:
    """`lax.conv_general_dilated` without dilations and groups; over at most SMALL_GRID positions as one matrix product, for there XLA's
    convolution takes a CPU two to five times as long, gradient included."""
    h, w, _, d = kernel.shape
    pads = lax.padtype_to_pads(x.shape[1:3], (h, w), strides, padding)
    grid = [(side + sum(pad) - k) // stride + 1 for side, pad, k, stride in zip(x.shape[1:3], pads, (h, w), strides, strict=True)]
    if grid[0] * grid[1] > SMALL_GRID or min(grid) < 1:
        return lax.conv_general_dilated(x, kernel, strides, padding, **others)
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    shifted = [x[:, i :: strides[0], j :: strides[1]][:, : grid[0], : grid[1]] for i in range(h) for j in range(w)]
    return jnp.concatenate(shifted, -1) @ kernel.reshape(-1, d)


class ResidualConv(nnx.Module):
    """x + conv3x3(gelu(norm(x)))."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.conv = nnx.Conv(width, width, (3, 3), use_bias=False, conv_general_dilated=convolve, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return x + self.conv(jax.nn.gelu(self.norm(x)))


class ConvTower(Tower):
    """Overlapping patch stem, `depth` residual convolutions on the patch grid, as many on a grid half as fine and twice as wide.

    The patch tokens are the fine grid's features plus the coarse grid's, projected and repeated, so that a token is local and
    knows its surroundings. Made for CPUs: at 32 px and patch 4 nearly all of its time is in 3x3 convolutions over 8x8 and 4x4.
    """

    def __init__(self, model: ModelConfig, image_size: int, *, dtype, rngs: nnx.Rngs):
        config = model.image
        c, p = config.width, config.patch
        self.grid = image_size // p
        self.dtype, self.pixels = dtype, config.pixels
        self.stem = nnx.Conv(3, c, (2 * p, 2 * p), strides=p, dtype=dtype, rngs=rngs)
        self.fine = nnx.List([ResidualConv(c, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.down = nnx.Conv(c, 2 * c, (3, 3), strides=2, conv_general_dilated=convolve, dtype=dtype, rngs=rngs)
        self.coarse = nnx.List([ResidualConv(2 * c, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.norm = nnx.LayerNorm(2 * c, dtype=dtype, rngs=rngs)
        self.lateral = nnx.Linear(2 * c, c, dtype=dtype, rngs=rngs)
        self.norm_tokens = nnx.LayerNorm(c, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(4 * c, model.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def trunk(self, images: UInt8[Array, "B S S 3"]) -> Trunk:
        x = self.stem(normalise(images, self.pixels, self.dtype))
        for block in self.fine:
            x = block(x)
        y = self.down(x)
        for block in self.coarse:
            y = block(y)
        y = jax.nn.gelu(self.norm(y))
        pooled = jnp.concatenate([y.mean((1, 2)), y.max((1, 2))], -1)
        up = self.lateral(y).repeat(2, axis=1).repeat(2, axis=2)[:, : x.shape[1], : x.shape[2]]
        tokens = self.norm_tokens(x + up)
        return Trunk(pooled=pooled, tokens=tokens.reshape(x.shape[0], -1, x.shape[-1]))


class ViT(Tower):
    """Vision transformer with learned positions and mean pooling (arXiv 2010.11929, 2205.01580)."""

    def __init__(self, model: ModelConfig, image_size: int, *, dtype, rngs: nnx.Rngs):
        config, self.model = model.image, model
        c, p = config.width, config.patch
        self.grid = image_size // p
        self.dtype, self.pixels = dtype, config.pixels
        self.stem = Patches(3, c, (p, p), strides=p, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (self.grid**2, c)))
        shape = {"activation": config.activation, "dtype": dtype, "rngs": rngs}
        self.blocks = nnx.List([Block(c, config.heads, config.mlp_ratio, **shape) for _ in range(config.depth)])
        self.norm = nnx.LayerNorm(c, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(c, model.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def trunk(self, images: UInt8[Array, "B S S 3"]) -> Trunk:
        x = self.stem(normalise(images, self.pixels, self.dtype))
        x = x + self.positions.astype(x.dtype)[None]
        x = self.norm(run_blocks(self.blocks, x, None, self.model))
        return Trunk(pooled=pool(x), tokens=x)
