"""Audio tower: log-mel frames [B, F, M] and their mask to pooled [B, D] and tokens [B, P, C], P = times x bands, times first."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from bacl_jax.config import Config
from bacl_jax.models.layers import Block, Tower, pool, run_blocks
from bacl_jax.models.mel import normalised
from bacl_jax.types import Features, Trunk


def audio_grid(config: Config) -> tuple[int, int]:
    """(times, bands) of the patches over data.audio.seconds; the last frames that fill no patch are left out."""
    data, tower = config.data.audio, config.model.audio
    return (
        max(0, data.frames - tower.patch_frames) // tower.stride_frames + 1,
        max(0, data.mel_bins - tower.patch_bins) // tower.stride_bins + 1,
    )


class AudioTransformer(Tower):
    """Transformer over patches of the spectrogram with learned positions, pooling the mean of the valid ones (AST, arXiv 2104.01778).

    A patch is valid where its first frame is: sounds of any length share a shape, and what lies beyond their end changes nothing.
    """

    def __init__(self, config: Config, *, dtype, rngs: nnx.Rngs):
        model, c, self.model = config.model.audio, config.model.audio.width, config.model
        self.grid, self.stride, self.dtype = audio_grid(config), model.stride_frames, dtype
        size, strides = (model.patch_frames, model.patch_bins), (model.stride_frames, model.stride_bins)
        self.stem = nnx.Conv(1, c, size, strides=strides, padding="VALID", dtype=dtype, rngs=rngs)
        times, bands = 0.02 * jax.random.normal(rngs.params(), (self.grid[0], 1, c)), jnp.zeros((1, self.grid[1], c))
        self.times, self.bands = nnx.Param(times), nnx.Param(bands + 0.02 * jax.random.normal(rngs.params(), bands.shape))
        shape = {"dtype": dtype, "rngs": rngs}
        self.blocks = nnx.List([Block(c, model.heads, model.mlp_ratio, **shape) for _ in range(model.depth)])
        self.norm = nnx.LayerNorm(c, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(c, config.model.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, mel: Float[Array, "B F M"], mask: Bool[Array, "B F"]) -> Features:
        valid = self.valid(mask)
        return self.finish(self.trunk(mel, mask), valid)

    def valid(self, mask: Bool[Array, "B F"]) -> Bool[Array, "B P"]:
        """Of the patches: those whose first frame is."""
        times, bands = self.grid
        return jnp.repeat(mask[:, : times * self.stride : self.stride], bands, axis=1)

    def trunk(self, mel: Float[Array, "B F M"], mask: Bool[Array, "B F"]) -> Trunk:
        x = self.stem(normalised(mel, mask)[..., None].astype(self.dtype))
        x = x + (self.times[...] + self.bands[...]).astype(x.dtype)[None]
        valid = self.valid(mask)
        x = self.norm(run_blocks(self.blocks, x.reshape(x.shape[0], -1, x.shape[-1]), valid, self.model))
        return Trunk(pooled=pool(x, valid), tokens=x)
