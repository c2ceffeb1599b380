"""BACL's two heads, BNS's policy and CLA's cross-modal layers, as pure functions of one nested dict of arrays.

Parameter paths: cross_attention/..., policy/..., and those of what stands beside them. Where the text is paired with several anchors,
each pair has its own: cross_attention/<anchor>/..., policy/<anchor>/...
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from bacl_jax.config_objective import ObjectiveConfig
from bacl_jax.models.cross_attention import CrossModal
from bacl_jax.models.policy import Policy
from bacl_jax.types import Features

Params = dict[str, Any]
Maker = Callable[[nnx.Rngs], nnx.Module]
ALONE = ""  # stands for the anchor where there is one alone


def part(name: str, anchor: str) -> str:
    """Path of a head's parameters."""
    return f"{name}/{anchor}" if anchor else name


class Heads:
    """Builds the modules that an objective needs once (their structure only) and applies them to parameters passed in.

    embed_dim: D; text_width, anchor_width: C of the text's and of the anchor's token features, by anchor where there are several.
    beside: makers of further modules by path, which are initialised and found in the same way. Each part draws its initial values from
    its own key.
    """

    def __init__(
        self,
        objective: ObjectiveConfig,
        embed_dim: int,
        text_width: int,
        anchor_width: int | Mapping[str, int],
        *,
        dtype: Any,
        beside: Mapping[str, Maker] | None = None,
    ):
        bns, cla = objective.bns, objective.cla
        self._makers: dict[str, Maker] = dict(beside or {})
        widths = {ALONE: anchor_width} if isinstance(anchor_width, int) else anchor_width
        for anchor, width in widths.items():
            if cla.enabled:
                self._makers[part("cross_attention", anchor)] = lambda rngs, width=width: CrossModal(
                    cla, text_width, width, dtype=dtype, rngs=rngs
                )
            if bns.enabled:
                self._makers[part("policy", anchor)] = lambda rngs: Policy(embed_dim, bns.hidden, bns.policy_bound, rngs=rngs)
        self._graphs = {name: nnx.split(nnx.eval_shape(lambda make=make: make(nnx.Rngs(0))))[0] for name, make in self._makers.items()}

    def init(self, key: Array) -> Params:
        """Fresh parameters, float32."""
        params: Params = {}
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

    def attend(self, params: Params, text: Features, anchor: Features, of: str = ALONE) -> tuple[Float[Array, "B T P"], Float[Array, " B"]]:
        """CLA's attention A [B, T, P] and matching logit [B]; of: which anchor's, where there are several."""
        return self._module(params, part("cross_attention", of))(text, anchor)

    def attend_each(
        self, params: Params, text: Features, anchor: Features, of: str = ALONE
    ) -> tuple[Float[Array, "N B T P"], Float[Array, "N B"]]:
        """`attend` for N captions an anchor, text [N, B, T, C]: what depends on the anchor alone is computed once."""
        return jax.vmap(functools.partial(self.attend, params, of=of), (0, None))(text, anchor)

    def policy(
        self, params: Params, anchor: Array, columns: Array, pick: Callable, s: Array, boundary: Array, *, of: str = ALONE
    ) -> Float[Array, "B K"]:
        """BNS's raw score of every candidate; `pick`: of an array [N, H] over the columns the rows of the candidates, [B, K, H]."""
        return self._module(params, part("policy", of))(anchor, columns, pick, s, boundary)
