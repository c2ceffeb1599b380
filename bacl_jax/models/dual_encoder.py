"""The dual encoder with BACL's two heads, as pure functions of one nested dict of arrays.

Parameter paths: towers/image/..., towers/text/..., cross_attention/..., policy/..., log_scale, bias (sigmoid only).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt8

from bacl_jax.config import Config
from bacl_jax.models.heads import Heads, Params
from bacl_jax.models.text import TextTransformer
from bacl_jax.models.vision import TOWERS
from bacl_jax.types import Features


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
            "towers/image": lambda rngs: TOWERS[m.image.kind](m, size, dtype=dtype, rngs=rngs),
            "towers/text": lambda rngs: TextTransformer(m, vocab_size, config.data.context_length, dtype=dtype, rngs=rngs),
        }
        super().__init__(config.objective, m.embed_dim, m.text.width, m.image.width, dtype=dtype, beside=towers)

    def init(self, key: Array) -> Params:
        """Fresh parameters, float32."""
        o = self.config.objective
        params: Params = {"log_scale": jnp.log(jnp.float32(o.init_scale))}
        if o.kind == "sigmoid":
            params["bias"] = jnp.float32(o.init_bias)
        return params | super().init(key)

    def encode_image(self, params: Params, images: UInt8[Array, "B S S 3"]) -> Features:
        return self._module(params, "towers/image")(images)

    def encode_text(self, params: Params, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Features:
        return self._module(params, "towers/text")(ids, mask)
