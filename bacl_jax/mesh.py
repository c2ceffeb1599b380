"""The device mesh and how a batch lies on it: axes "data", "fsdp", "tensor", always present, of size 1 when unused."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bacl_jax.config import MeshConfig
from bacl_jax.rules import mesh_sizes

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def spare_threads(devices: int) -> None:
    """Gives XLA's CPU client 8 threads a device; comes before JAX's devices are used, and changes nothing on others.

    A collective holds its thread until the others have come, and a device may wait in several at once. With XLA's own number, one a core,
    the waiting may take all threads of a process, and the run hangs. NPROC is where XLA reads the number; one that is set stays.
    """
    os.environ.setdefault("NPROC", str(max(os.cpu_count() or 1, 8 * devices)))


def compile_anew() -> None:
    """Switches JAX's compilation cache off where the devices are CPUs; comes before anything is compiled for several of them.

    A program that comes out of the cache has lost the order of its collectives: two devices each wait in another one, and the run hangs.
    """
    if jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)


def make_mesh(config: MeshConfig, on: Sequence[Any] | None = None) -> Mesh:
    """A mesh over the devices `on` (None: all of all processes), see `bacl_jax.rules.mesh_sizes`."""
    shape = mesh_sizes(config, jax.device_count() if on is None else len(on))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=on)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First dimension over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def spread(mesh: Mesh) -> NamedSharding:
    """First dimension over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def process_blocks(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """(which, of how many) equal blocks of a batch's rows the devices of this process hold.

    Neighbours in the mesh may be far apart (TPU), and processes that differ along tensor alone hold the same rows.
    """
    blocks = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    held = {index[0].start or 0 for index in batch_sharding(mesh).addressable_devices_indices_map((blocks,)).values() if index}
    return tuple(sorted(held)), blocks


def to_global(mesh: Mesh, host_batch: Any) -> Any:
    """This process's rows (a pytree of numpy arrays, its blocks in order) to global arrays, first dimension sharded over the batch axes."""
    sharding, (held, blocks) = batch_sharding(mesh), process_blocks(mesh)

    def place(x: np.ndarray) -> jax.Array:
        rows = len(x) // len(held)
        start = {block * rows: place * rows for place, block in enumerate(held)}
        shape = (rows * blocks, *x.shape[1:])
        part = lambda index: x[start[index[0].start or 0] :][:rows]  # noqa: E731
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(place, host_batch)


def to_host(tree: Any) -> Any:
    """Global arrays as whole numpy arrays in every process, all of which must ask; one process has its own at hand as they are."""
    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree


def on_local_devices(tree: Any) -> Any:
    """Host arrays whole on each device of this process; what lies on devices already stays as it is."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)):
        return tree
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices), 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    return jax.device_put(tree, replicated(mesh))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that holds the arrays of a tree, if it has several devices, all of this process; else None."""
    sharding = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh) or not sharding.is_fully_addressable:
        return None
    return sharding.mesh if sharding.mesh.size > 1 else None


def by_rows(mesh: Mesh, rows: Sequence[Any]) -> tuple[jax.Array, ...]:
    """Host arrays with their rows over the batch axes of a mesh of this process; the last row is repeated until they divide."""
    blocks = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    take = np.arange(-(-len(rows[0]) // blocks) * blocks).clip(max=len(rows[0]) - 1)
    return tuple(jax.device_put(x if len(take) == len(x) else x[take], batch_sharding(mesh)) for x in rows)
