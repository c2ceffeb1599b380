"""A tower for each modality with BACL's two heads, as pure functions of one nested dict of arrays.

Parameter paths: towers/<modality>/..., cross_attention/..., policy/..., log_scale, bias (sigmoid only); heads.py tells them for several
anchors.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt8

from bacl_jax.config import Config
from bacl_jax.models.audio import AudioTransformer, audio_grid
from bacl_jax.models.bert import BertText
from bacl_jax.models.clip import ClipImage, ClipText
from bacl_jax.models.heads import Heads, Params
from bacl_jax.models.mel import log_mel, spec_augment
from bacl_jax.models.siglip import SiglipImage, SiglipText
from bacl_jax.models.text import TextTransformer
from bacl_jax.models.video import VideoTransformer
from bacl_jax.models.vision import ConvTower, ViT
from bacl_jax.types import Features, Tokens, Trunk

IMAGE_TOWERS = {"conv": ConvTower, "vit": ViT, "clip": ClipImage, "siglip": SiglipImage}
TEXT_TOWERS = {"transformer": TextTransformer, "clip": ClipText, "siglip": SiglipText, "bert": BertText}


class Model(Heads):
    """The towers of a config beside its heads: one for each of data.anchors, and the text's.

    Each part draws its initial values from its own key, so that runs that differ in the objective alone start
    from the same towers.
    """

    def __init__(self, config: Config, vocab_size: int):
        self.config, self.anchors = config, config.data.anchors
        dtype, m = jnp.dtype(config.model.dtype), config.model
        if {"image", "video"} & {*self.anchors} and config.data.image_size % m.image.patch:
            raise ValueError(f"data.image_size {config.data.image_size} is not divisible by model.image.patch {m.image.patch}")
        side, frames = config.data.image_size // m.image.patch, config.data.video.frames
        self.grids = {"image": (side, side), "audio": audio_grid(config), "video": (frames, side * side)}
        makers = {
            "image": lambda rngs: IMAGE_TOWERS[m.image.kind](m, config.data.image_size, dtype=dtype, rngs=rngs),
            "audio": lambda rngs: AudioTransformer(config, dtype=dtype, rngs=rngs),
            "video": lambda rngs: VideoTransformer(config, IMAGE_TOWERS[m.image.kind], dtype=dtype, rngs=rngs),
            "text": lambda rngs: TEXT_TOWERS[m.text.kind](m, vocab_size, config.data.context_length, dtype=dtype, rngs=rngs),
        }
        widths = {"image": m.image.width, "audio": m.audio.width, "video": m.image.width}
        width = widths[self.anchors[0]] if len(self.anchors) == 1 else {name: widths[name] for name in self.anchors}
        towers = {f"towers/{name}": makers[name] for name in (*self.anchors, "text")}
        super().__init__(config.objective, m.embed_dim, m.text.width, width, dtype=dtype, beside=towers)

    @property
    def grid(self) -> tuple[int, int]:
        """How the first anchor's tokens lie: rows and columns of patches; times and bands; frames and patches of one."""
        return self.grids[self.anchors[0]]

    def init(self, key: Array) -> Params:
        """Fresh parameters, float32."""
        o = self.config.objective
        params: Params = {"log_scale": jnp.log(jnp.float32(o.init_scale))}
        if o.kind == "sigmoid":
            params["bias"] = jnp.float32(o.init_bias)
        return params | super().init(key)

    def image_trunk(self, params: Params, images: UInt8[Array, "B S S 3"]) -> Trunk:
        return self._module(params, "towers/image").trunk(images)

    def text_trunk(self, params: Params, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Trunk:
        return self._module(params, "towers/text").trunk(ids, mask)

    def finish_image(self, params: Params, trunk: Trunk) -> Features:
        return self._module(params, "towers/image").finish(trunk)

    def finish_text(self, params: Params, trunk: Trunk, mask: Bool[Array, "B T"]) -> Features:
        return self._module(params, "towers/text").finish(trunk, mask)

    def encode_image(self, params: Params, images: UInt8[Array, "B S S 3"]) -> Features:
        return self.finish_image(params, self.image_trunk(params, images))

    def encode_text(self, params: Params, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Features:
        return self.finish_text(params, self.text_trunk(params, ids, mask), mask)

    def prepare(self, modality: str, tokens: Tokens, keys: Array | None = None) -> Any:
        """What the tower of an anchor takes of its raw input. keys: one a row, for what is drawn while training (SpecAugment)."""
        if modality != "audio":
            return tokens.values
        assert tokens.mask is not None
        audio = self.config.data.audio
        mel = log_mel(tokens.values, audio)
        return (mel if keys is None else spec_augment(mel, tokens.mask, keys, audio)), tokens.mask

    def encode_anchor(self, params: Params, modality: str, given: Any) -> Features:
        """The tower of an anchor over what `prepare` gave."""
        if modality == "image":
            return self.encode_image(params, given)
        tower = self._module(params, f"towers/{modality}")
        return tower(*given) if modality == "audio" else tower(given)
