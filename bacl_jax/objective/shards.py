"""How rows lie on the devices of a mesh, and the one way in which they meet rows of another device: they travel round.

With one device nothing here makes a collective. Dimension legend beyond types.py: n devices, t rows of a tile.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from bacl_jax.mesh import BATCH_AXES

Visit = Callable[[Any, Any, Any, Array], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Shards:
    """Rows spread evenly over all devices of a mesh, in their order (None: one device).

    tile: rows and columns compared at a time. parts: micro-batches in which the towers see a batch.
    """

    mesh: Mesh | None = None
    tile: int = 1024
    parts: int = 1

    @property
    def count(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def axes(self) -> tuple[str, ...]:
        return () if self.mesh is None or self.mesh.size == 1 else tuple(self.mesh.axis_names)

    def map(self, function: Callable[..., Any], *spread: Any, shared: tuple[Any, ...] = ()) -> Any:
        """function(*spread, *shared) on each device's rows of `spread` and all of `shared`; the rows of its results are spread.

        ValueError where the rows do not divide over the devices.
        """
        if not self.axes:
            return function(*spread, *shared)
        for leaf in jax.tree.leaves(spread):
            if leaf.shape[0] % self.count:
                raise ValueError(f"{leaf.shape[0]} rows do not divide over {self.count} devices")
        rows = PartitionSpec(self.axes)
        specs = ((rows,) * len(spread)) + ((PartitionSpec(),) * len(shared))
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=rows, check_vma=False)(*spread, *shared)

    def in_parts(self, function: Callable[[Any], Any], rows: Any) -> Any:
        """function(rows), one part of each device's rows after the other: GradCache (arXiv 2101.06983).

        What a part keeps for its gradient is dropped, and made again in the backward pass: the memory is that of one part, the cost
        one more forward pass, the gradient the same. ValueError where the rows do not divide.
        """
        if self.parts == 1:
            return function(rows)
        shards = 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)
        if (size := jax.tree.leaves(rows)[0].shape[0]) % (shards * self.parts):
            raise ValueError(f"{size} rows do not divide into {self.parts} parts on each of {shards} devices")

        def turned(x: Array, first: int, second: int) -> Array:
            """[first * second * r, ...], numbered by `first`, to the same numbered by `second`."""
            return x.reshape(first, second, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

        def one(part: Any) -> Any:
            return function(self.by_batch(part))

        split = cut(jax.tree.map(lambda x: turned(x, shards, self.parts), rows), size // self.parts)
        done = whole(jax.lax.map(jax.checkpoint(one), self.by_batch(split, axis=1)))
        return self.by_batch(jax.tree.map(lambda x: turned(x, self.parts, shards), done))

    def by_batch(self, tree: Any, axis: int = 0) -> Any:
        """Rows (dimension `axis`) over the batch axes alone: a device that shares heads or hidden layers has all of its rows."""
        if not self.axes:
            return tree
        assert self.mesh is not None
        where = NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), tree)

    def everywhere(self, tree: Any) -> Any:
        """The same arrays, whole on every device: one all-gather of them, not of what they were computed from."""
        if not self.axes:
            return tree
        assert self.mesh is not None
        for spec in (PartitionSpec(self.axes), PartitionSpec()):
            tree = jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, spec))
        return tree

    def top_k(self, x: Float[Array, "E N"], k: int) -> Int[Array, "E k"]:
        """Where the k largest entries of each row are, found on the device that has the row. No gradient."""
        return self.map(lambda x: jax.lax.top_k(x, k)[1], jax.lax.stop_gradient(x))

    def fetch(self, tree: Any, index: Int[Array, " E"]) -> Any:
        """Rows `index` of arrays [N, ...], wherever they are. Traffic a device: E rows; the index travels, the N rows stay."""
        if not self.axes:
            return jax.tree.map(lambda x: x[index], tree)

        def local(tree: Any, index: Array) -> Any:
            rows = jax.tree.leaves(tree)[0].shape[0]
            first = jax.lax.axis_index(self.axes) * rows

            def visit(_: Any, index: Array, found: Any, owner: Array) -> tuple[Any, Any]:
                place = index - first
                inside = (place >= 0) & (place < rows)

                def fill(x: Array, old: Array) -> Array:
                    here = x[jnp.clip(place, 0, rows - 1)]
                    return jnp.where(inside.reshape(-1, *(1,) * (x.ndim - 1)), here, old)

                return (), jax.tree.map(fill, tree, found)

            nothing = jax.tree.map(lambda x: jnp.zeros((index.shape[0], *x.shape[1:]), x.dtype), tree)
            return travel(visit, (), index, nothing, self.axes)[1]

        return self.map(local, tree, index)


ONE_DEVICE = Shards()


def travel(visit: Visit, state: Any, block: Any, luggage: Any, axes: tuple[str, ...]) -> tuple[Any, Any]:
    """Sends `block` and its `luggage` once round the devices; at each stop (state, luggage) = visit(state, block, luggage, owner).

    `owner` is the device whose block it is. The next block is asked for before the present one is used, so that the transfer
    can hide behind the work. Returns the state and the luggage, home again. axes (): one device, one visit.
    """
    n = jax.lax.axis_size(axes) if axes else 1
    me = jax.lax.axis_index(axes) if axes else jnp.int32(0)
    if n == 1:
        return visit(state, block, luggage, me)
    onward = functools.partial(jax.lax.ppermute, axis_name=axes, perm=[(i, (i + 1) % n) for i in range(n)])

    def stop(carry: tuple, number: Array) -> tuple[tuple, None]:
        state, block, luggage = carry
        coming = jax.tree.map(onward, block)
        state, luggage = visit(state, block, luggage, (me - number) % n)
        return (state, coming, jax.tree.map(onward, luggage)), None

    (state, _, luggage), _ = jax.lax.scan(stop, (state, block, luggage), jnp.arange(n))
    return state, luggage


def tiles(size: int, at_most: int) -> int:
    """The largest divisor of `size` that is no larger than `at_most`: rows of one tile of a scan."""
    return next(t for t in range(min(size, at_most), 0, -1) if size % t == 0)


def padded(tree: Any, tile: int) -> Any:
    """Leaves [b, ...] with zeros after them up to a multiple of `tile`."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, -x.shape[0] % tile), *((0, 0),) * (x.ndim - 1))), tree)


def cut(tree: Any, tile: int) -> Any:
    """Leaves [b, ...] to [b / t, t, ...]."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // tile, tile, *x.shape[1:]), tree)


def whole(parts: Any) -> Any:
    """The inverse of `cut`."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), parts)
