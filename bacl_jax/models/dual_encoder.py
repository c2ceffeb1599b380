"""The dual encoder with BACL's two heads, as pure functions of one nested dict of arrays.

Parameter paths: towers/image/..., towers/text/..., cross_attention/..., policy/..., log_scale, bias (sigmoid only).
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from bacl_jax.config import Config
from bacl_jax.models.cross_attention import CrossModal
from bacl_jax.models.policy import Policy
from bacl_jax.models.text import TextTransformer
from bacl_jax.models.vision import TOWERS
from bacl_jax.types import Features

Params = dict[str, Any]


class Model:
    """Builds the modules of a config once (their structure only) and applies them to parameters passed in.

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
        self._makers = {
            "towers/image": lambda rngs: TOWERS[m.image.kind](m, size, dtype=dtype, rngs=rngs),
            "towers/text": lambda rngs: TextTransformer(m, vocab_size, config.data.context_length, dtype=dtype, rngs=rngs),
        }
        if config.objective.cla.enabled:
            self._makers["cross_attention"] = lambda rngs: CrossModal(
                config.objective.cla, m.text.width, m.image.width, dtype=dtype, rngs=rngs
            )
        if config.objective.bns.enabled:
            bns = config.objective.bns
            self._makers["policy"] = lambda rngs: Policy(m.embed_dim, bns.hidden, bns.policy_bound, rngs=rngs)
        self._graphs = {name: nnx.split(nnx.eval_shape(lambda make=make: make(nnx.Rngs(0))))[0] for name, make in self._makers.items()}

    def init(self, key: Array) -> Params:
        """Fresh parameters, float32."""
        o = self.config.objective
        params: Params = {"log_scale": jnp.log(jnp.float32(o.init_scale))}
        if o.kind == "sigmoid":
            params["bias"] = jnp.float32(o.init_bias)
        for name, make in self._makers.items():
            state = nnx.split(make(nnx.Rngs(jax.random.fold_in(key, zlib.crc32(name.encode())))))[1]
            *path, leaf = name.split("/")
            target = params
            for part in path:
                target = target.setdefault(part, {})
            target[leaf] = nnx.to_pure_dict(state)
        return params

    def _module(self, params: Params, name: str) -> Any:
        if name not in self._graphs:
            raise ValueError(f"this config has no {name}: enable the part of the objective that brings it")
        for part in name.split("/"):
            params = params[part]
        return nnx.merge(self._graphs[name], params)

    def encode_image(self, params: Params, images: UInt8[Array, "B S S 3"]) -> Features:
        return self._module(params, "towers/image")(images)

    def encode_text(self, params: Params, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Features:
        return self._module(params, "towers/text")(ids, mask)

    def attend(self, params: Params, text: Features, anchor: Features) -> tuple[Float[Array, "B T P"], Float[Array, " B"]]:
        """CLA's attention A [B, T, P] and matching logit [B]."""
        return self._module(params, "cross_attention")(text, anchor)

    def attend_each(self, params: Params, text: Features, anchor: Features) -> tuple[Float[Array, "N B T P"], Float[Array, "N B"]]:
        """`attend` for N captions an anchor, text [N, B, T, C]: what depends on the anchor alone is computed once."""
        return jax.vmap(functools.partial(self.attend, params), (0, None))(text, anchor)

    def policy(self, params: Params, anchor: Array, columns: Array, pick: Callable, s: Array, boundary: Array) -> Float[Array, "B K"]:
        """BNS's raw score of every candidate; `pick`: of an array [N, H] over the columns the rows of the candidates, [B, K, H]."""
        return self._module(params, "policy")(anchor, columns, pick, s, boundary)
