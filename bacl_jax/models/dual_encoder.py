"""The dual encoder with BACL's two heads, as pure functions of one nested dict of arrays.

Parameter paths: towers/image/..., towers/text/..., cross_attention/..., policy/..., log_scale, bias (sigmoid only).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt8

from bacl_jax.config import Config
from bacl_jax.models.bert import BertText
from bacl_jax.models.clip import ClipImage, ClipText
from bacl_jax.models.heads import Heads, Params
from bacl_jax.models.siglip import SiglipImage, SiglipText
from bacl_jax.models.text import TextTransformer
from bacl_jax.models.vision import ConvTower, ViT
from bacl_jax.types import Features, Trunk

IMAGE_TOWERS = {"conv": ConvTower, "vit": ViT, "clip": ClipImage, "siglip": SiglipImage}
TEXT_TOWERS = {"transformer": TextTransformer, "clip": ClipText, "siglip": SiglipText, "bert": BertText}


class Model(Heads):
    """The towers of a config beside its heads.

    Each part draws its initial values from its own key, so that runs that differ in the objective alone start
    from the same towers.
    """

    def __init__(self, config: Config, vocab_size: int):
        self.config = config
        dtype = jnp.dtype(config.model.dtype)
        m, size = config.model, config.data.image_size
        if size % m.image.patch:
            raise ValueError(f"data.image_size {size} is not divisible by model.image.patch {m.image.patch}")
        side = size // m.image.patch
        self.grid = (side, side)
        towers = {
            "towers/image": lambda rngs: IMAGE_TOWERS[m.image.kind](m, size, dtype=dtype, rngs=rngs),
            "towers/text": lambda rngs: TEXT_TOWERS[m.text.kind](m, vocab_size, config.data.context_length, dtype=dtype, rngs=rngs),
        }
        super().__init__(config.objective, m.embed_dim, m.text.width, m.image.width, dtype=dtype, beside=towers)

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
