"""What a foreign trainer hands to the add-on, and its check: errors name the field, what was found and what it must be.

Dimensions as in types.py, with E captions to encode.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from bacl_jax.config_objective import ObjectiveConfig
from bacl_jax.objective.bank import Bank
from bacl_jax.types import AnyArray

DIMS = {"D": "dims.embed", "T": "dims.context", "Ct": "dims.text_width", "Ca": "dims.anchor_width", "B": "rows of z"}
LAYOUT = {  # field of Features -> what it holds, and its dimensions
    "z": (jnp.floating, "B D"),
    "w": (jnp.floating, "B D"),
    "ids": (jnp.integer, "B T"),
    "mask": (jnp.bool_, "B T"),
    "caption_id": (jnp.uint32, "B 2"),
    "anchor_id": (jnp.uint32, "B 2"),
    "log_scale": (jnp.floating, ""),
    "bias": (jnp.floating, ""),
    "X": (jnp.floating, "B P Ca"),
    "Y": (jnp.floating, "B T Ct"),
    "X_mask": (jnp.bool_, "B P"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dims:
    """embed: D of z and w; context: T, tokens of a caption with its padding; text_width, anchor_width: C of Y and of X (CLA only)."""

    embed: int
    context: int
    text_width: int = 0
    anchor_width: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """What the trainer's towers made of one global batch, and what identifies its rows. Arrays of JAX or numpy.

    z, w:       floating [B, D], pooled embeddings of anchors and texts, with gradient; any length, they are normalised here.
    ids, mask:  integer and bool [B, T], the captions' tokens and where they are valid: BOS words EOS padding. CLA compares what
                lies between the first and the last valid token.
    caption_id: uint32 [B, 2], `caption_ids`. Rows with one caption or one anchor are positives of each other.
    anchor_id:  uint32 [B, 2], `anchor_ids`.
    log_scale:  floating [], log of the inverse temperature, the trainer's own, with gradient. Project it after each update, to at most
                log 100: clipped in the forward pass it has no gradient to come back.
    bias:       floating [], the sigmoid loss's; None for InfoNCE.
    X, Y:       floating [B, P, C] and [B, T, C'], token features of anchors and texts; CLA only. CLA's layers compute in Y's type.
                They carry gradient only with cla.into_towers.
    X_mask:     bool [B, P], None where every token of X is valid.
    encode_text: (ids [E, T], mask [E, T]) -> (w [E, D], Y [E, T, C'] or None) by the text tower's present parameters, differentiable: for
                captions out of the bank (cost: E = bns.drawn_share B more texts a step). Without CLA and with drawn_share = 0 None will do.
    """

    z: AnyArray
    w: AnyArray
    ids: AnyArray
    mask: AnyArray
    caption_id: AnyArray
    anchor_id: AnyArray
    log_scale: AnyArray
    bias: AnyArray = None
    X: AnyArray = None
    Y: AnyArray = None
    X_mask: AnyArray = None
    encode_text: Callable[[Array, Array], tuple[Any, Any]] | None = None


def check(params: dict[str, Any], state: Bank, features: Features, config: ObjectiveConfig) -> dict[str, int]:
    """The size of each dimension of LAYOUT, known from what `init` made and from z; ValueError for what does not fit."""
    wanted = [name for name, on in (("policy", config.bns.enabled), ("cross_attention", config.cla.enabled)) if on]
    if missing := [name for name in wanted if name not in params]:
        raise ValueError(f"params lack {missing}, which this config trains: they hold {sorted(params)}; call init with the same config")
    sizes = {"2": 2, "D": state.text.shape[1], "T": state.ids.shape[1]}
    optional = {name for name, on in (("bias", config.kind == "sigmoid"), ("X", config.cla.enabled), ("Y", config.cla.enabled)) if not on}
    if config.cla.enabled:
        layers = params["cross_attention"]
        sizes |= {name: layers[part]["kernel"].shape[0] for name, part in (("Ct", "text_in"), ("Ca", "anchor_in"))}
    for name, (kind, layout) in LAYOUT.items():
        x = getattr(features, name)
        if x is not None or name not in optional | {"X_mask"}:
            expect(f"features.{name}", x, kind, layout, sizes)
    if features.encode_text is None and (
        config.cla.enabled or (config.bns.enabled and config.bns.drawn_share > 0 and not config.bns.stale)
    ):
        raise ValueError("features.encode_text is None: must encode captions, for CLA or bns.drawn_share > 0; give it, or switch both off")
    return sizes


def expect(name: str, x: Any, kind: Any, layout: str, sizes: dict[str, int]) -> None:
    """ValueError unless `x` is an array of this kind (`jnp.floating`, ...) and of the shape that `layout` names.

    sizes: of the dimensions known so far; a dimension without one gets x's.
    """
    dims, known = layout.split(), hasattr(x, "shape") and hasattr(x, "dtype")
    if known and jnp.issubdtype(x.dtype, kind) and len(x.shape) == len(dims):
        wanted = [sizes.setdefault(dim, size) for dim, size in zip(dims, x.shape, strict=True)]
        if list(x.shape) == wanted:
            return
    expected = ", ".join(f"{sizes.get(dim, dim)}" for dim in dims)
    why = "; ".join(f"{sizes[dim]} = {DIMS[dim]}" for dim in dims if dim in DIMS and dim in sizes)
    found = f"{x.dtype}{list(x.shape)}" if known else f"{x!r:.60}"
    raise ValueError(f"{name} is {found}: must be {kind.__name__.rstrip('_')}[{expected}]{why and f' ({why})'}")
