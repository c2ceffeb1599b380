"""Where parameters lie on the mesh: rules as data, one decision a parameter, each of which can be printed.

fsdp cuts what is large (arXiv 1910.02054: parameters, optimiser state and averages are spread, and gathered where they are used);
tensor cuts the attention heads and the hidden layer of every MLP (arXiv 1909.08053: one sum after attention, one after the MLP).
"""

import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bacl_jax.config import ConfigError, MeshConfig

TENSOR: tuple[tuple[str, int], ...] = (  # path of a parameter -> the axis that "tensor" cuts
    (r".*attention/(query|key|value)/(kernel|bias)", -1),
    (r".*attention/out/kernel", 0),
    (r".*mlp/up/(kernel|bias)", -1),
    (r".*mlp/down/kernel", 0),
)
SHOWN = 4  # paths in the message about a pattern that matches none


@dataclasses.dataclass(frozen=True)
class Decision:
    """Where one parameter lies, and why."""

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    why: str

    def __str__(self) -> str:
        return f"{self.path} {list(self.shape)}: {self.why}"


def named_leaves(params: Any) -> list[tuple[str, Any]]:
    """(path with slashes, leaf) of every parameter, in the order of the tree."""
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in jax.tree.leaves_with_path(params)]


def decide(path: str, shape: tuple[int, ...], config: MeshConfig) -> Decision:
    """The rule that holds for a parameter, the first of: mesh.whole names it; TENSOR; large enough for fsdp; whole.

    ConfigError where an axis does not divide, with the numbers.
    """
    axes: list[str | None] = [None] * len(shape)
    why = []
    if any(re.fullmatch(pattern, path) for pattern in config.whole):
        return Decision(path, shape, PartitionSpec(), "whole, named in mesh.whole")
    if config.tensor > 1:
        for pattern, axis in TENSOR:
            if re.fullmatch(pattern, path):
                if shape[axis] % config.tensor:
                    raise ConfigError(
                        f"parameter {path} {list(shape)}: axis {axis % len(shape)} does not divide by mesh.tensor = {config.tensor}"
                    )
                axes[axis] = "tensor"
                why.append(f"axis {axis % len(shape)} over tensor")
                break
    size = math.prod(shape)
    if config.fsdp > 1 and size >= config.fsdp_floor:
        uncut = [axis for axis in range(len(shape)) if axes[axis] is None]
        free = [axis for axis in uncut if shape[axis] % config.fsdp == 0]
        if uncut and not free:
            raise ConfigError(
                f"parameter {path} {list(shape)}: no axis divides by mesh.fsdp = {config.fsdp}; change mesh.fsdp, or leave it whole with "
                f"--config.mesh.whole=\"('{re.escape(path)}',)\""
            )
        if free:
            largest = max(free, key=lambda axis: shape[axis])
            axes[largest] = "fsdp"
            why.append(f"axis {largest} over fsdp")
    elif config.fsdp > 1:
        why.append(f"{size} elements < mesh.fsdp_floor = {config.fsdp_floor}")
    return Decision(path, shape, PartitionSpec(*axes), ", ".join(why) or "whole")


def decisions(params: Any, config: MeshConfig) -> list[Decision]:
    """One for each parameter (arrays or their shapes), in the order of the tree. ConfigError where an entry of mesh.whole names none."""
    named = [(path, leaf.shape) for path, leaf in named_leaves(params)]
    for pattern in config.whole:
        if not any(re.fullmatch(pattern, path) for path, _ in named):
            some = ", ".join(path for path, _ in named[:: max(1, len(named) // SHOWN)][:SHOWN])
            raise ConfigError(
                f"config.mesh.whole: {pattern!r} matches the whole path of no parameter; there are {len(named)}, among them {some}; "
                "set it with --config.mesh.whole=\"('pattern',)\""
            )
    return [decide(path, shape, config) for path, shape in named]


def shardings(params: Any, mesh: Mesh, config: MeshConfig) -> Any:
    """A NamedSharding for each parameter."""
    found = [NamedSharding(mesh, decision.spec) for decision in decisions(params, config)]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def follow(tree: Any, params: Any, where: Any, other: NamedSharding) -> Any:
    """For a tree that holds trees like `params` (an optimiser's state): each leaf lies as the parameter whose path its own ends with.

    other: where the leaves lie that belong to no parameter.
    """
    parts = lambda path: tuple(jax.tree_util.keystr((key,), simple=True) for key in path)  # noqa: E731
    leaves = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(where), strict=True)
    known = {(parts(path), leaf.shape): place for (path, leaf), place in leaves}

    def place(path: tuple, leaf: Any) -> NamedSharding:
        names = parts(path)
        return next((known[key] for i in range(len(names)) if (key := (names[i:], leaf.shape)) in known), other)

    return jax.tree.map_with_path(place, tree)


def summary(params: Any, config: MeshConfig) -> str:
    """One line: how many parameters there are and how many of them are cut along what."""
    sizes = {"fsdp": 0, "tensor": 0, "whole": 0}
    for one in decisions(params, config):
        for axis in [axis for axis in one.spec if axis] or ["whole"]:
            sizes[axis] += math.prod(one.shape)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return f"{total:,} parameters; " + ", ".join(
        f"{size:,} {'' if axis == 'whole' else 'over '}{axis}" for axis, size in sizes.items() if size
    )
