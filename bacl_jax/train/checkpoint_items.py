"""A state and its partner lists as the items of a checkpoint, and back: flat names, so that a new field is one more array."""

import dataclasses
from typing import Any

import jax
import numpy as np

from bacl_jax.data.order import PartnerList
from bacl_jax.train.state import TrainState

ARRAYS = {
    "params": ("params",),
    "ema": ("ema",),
    "opt_state": ("opt_state",),
    "bank": ("bank",),
    "rng": ("rng",),
    "counters": ("step", "nonfinite", "skipped"),
}
FEATURES = "bank_features"  # the part of the bank that only runs with data.features have


def array_items(state: TrainState) -> dict[str, Any]:
    """Item name -> pytree of arrays: nested dicts of parameters, flat dicts (path -> leaf) of everything else."""
    items = {}
    for name, fields in ARRAYS.items():
        tree = {field: getattr(state, field) for field in fields}
        if name in ("params", "ema"):
            items |= {name: tree[name]} if tree[name] is not None else {}
        else:
            items[name] = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    features = {path: items["bank"].pop(path) for path in [*items["bank"]] if path.startswith("bank.stored.")}
    return items | ({FEATURES: features} if features else {})


def part(tree: Any, stored: Any) -> Any:
    """The leaves of nested dicts that are also in `stored`, nested dicts whose names are texts."""
    if not isinstance(tree, dict):
        return tree
    return {name: part(value, stored[str(name)]) for name, value in tree.items() if str(name) in stored}


def from_array_items(abstract: TrainState, items: dict[str, Any]) -> TrainState:
    """Inverse of `array_items`, into the structure of `abstract`."""
    values: dict[str, Any] = {"ema": None}
    whole_bank = items["bank"] | items.get(FEATURES, {})
    for name, found in {**{name: found for name, found in items.items() if name != FEATURES}, "bank": whole_bank}.items():
        if name in ("params", "ema"):
            values[name] = found
        else:
            tree = {field: getattr(abstract, field) for field in ARRAYS[name]}
            values |= jax.tree.map_with_path(
                lambda path, _, found=found: found[jax.tree_util.keystr(path, simple=True, separator=".")], tree
            )
    return dataclasses.replace(abstract, **values)


def to_item(one: PartnerList) -> dict[str, np.ndarray]:
    """The arrays of a list as they are, after a first row of -1, because orbax stores no empty array."""
    none = np.full((1, one.partners.shape[1]), -1, np.int32)
    return {"rows": np.concatenate([[-1], one.rows]), "partners": np.concatenate([none, one.partners])}


def from_item(active_from: int, item: dict[str, np.ndarray]) -> PartnerList:
    """Inverse of `to_item`."""
    return PartnerList(active_from, item["rows"][1:], item["partners"][1:])
