"""Video tower: frames uint8 [B, F, S, S, 3] to pooled [B, D] and space-time tokens [B, F P, C], frame by frame, each row-major."""

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, UInt8

from bacl_jax.config import Config
from bacl_jax.models.layers import Block, Linear, Tower, l2_normalise, run_blocks
from bacl_jax.types import Features


class VideoTransformer(nnx.Module):
    """The image tower of model.image over each frame, then a transformer over the frames' embeddings, added to them before the mean.

    As CLIP4Clip's sequence transformer (arXiv 2104.08860). What it finds of a frame is also added to the frame's patch tokens, so that a
    space-time token knows its time. With optim.frozen = ("towers/video/frames/.*",) the image tower stays as it is.
    """

    def __init__(self, config: Config, image: Callable[..., Tower], *, dtype, rngs: nnx.Rngs):
        model, d, self.model = config.model.video, config.model.embed_dim, config.model
        self.frames = image(config.model, config.data.image_size, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.data.video.frames, d)))
        shape = {"dtype": dtype, "rngs": rngs}
        self.blocks = nnx.List([Block(d, model.heads, model.mlp_ratio, **shape) for _ in range(model.depth)])
        self.norm = nnx.LayerNorm(d, dtype=dtype, rngs=rngs)
        self.into_tokens = Linear(d, config.model.image.width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, frames: UInt8[Array, "B F S S 3"]) -> Features:
        b, f = frames.shape[:2]
        seen = self.frames.finish(self.frames.trunk(frames.reshape(b * f, *frames.shape[2:])))
        assert seen.tokens is not None
        single = seen.pooled.reshape(b, f, -1)
        x = (single + self.positions[...][None]).astype(self.norm.dtype)
        x = self.norm(run_blocks(self.blocks, x, None, self.model) if len(self.blocks) else x)
        tokens = seen.tokens.reshape(b, f, -1, seen.tokens.shape[-1]) + self.into_tokens(x)[:, :, None]
        return Features(pooled=l2_normalise((single + x).mean(1)), tokens=tokens.reshape(b, -1, tokens.shape[-1]))
