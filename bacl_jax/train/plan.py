"""What a run will need, known before it is trained: parameters, FLOPs, memory of a device, size of a checkpoint, time of a step."""

import dataclasses
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import jax

from bacl_jax import paths
from bacl_jax.config import Config
from bacl_jax.mesh import to_global
from bacl_jax.train import flops
from bacl_jax.train.ahead import compiled_step
from bacl_jax.train.step import Trainer
from bacl_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a step needs, of a trainer on its mesh.

    parameters: by tower or other part, in the order of the model; trained: those that are not frozen.
    flops:      of a step, over all devices, see flops.py.
    compiled:   the step; None where it does not fit.
    memory:     bytes on a device while a step runs; limit: those that it has, None where that is not known.
    checkpoint: bytes of a checkpoint's arrays, before they are compressed.
    """

    parameters: dict[str, int]
    trained: int
    flops: float
    compiled: Any | None
    memory: int
    limit: int | None
    checkpoint: int

    @property
    def fits(self) -> bool:
        return self.compiled is not None and (self.limit is None or self.memory <= self.limit)


def needs(trainer: Trainer, batch: Any) -> Needs:
    """Compiles the step for a global batch, or its shapes. Makes no parameter."""
    state = trainer.abstract_state()
    compiled, memory = compiled_step(trainer, state, batch)
    sizes = {path: math.prod(leaf.shape) for path, leaf in paths.named(state.params)}
    parts: dict[str, int] = {}
    for path, size in sizes.items():
        top, *rest = path.split("/")
        part = f"{rest[0]} {top.removesuffix('s')}" if top == "towers" else top.replace("_", " ")
        parts[part] = parts.get(part, 0) + size
    return Needs(
        parameters=parts,
        trained=sum(size for path, size in sizes.items() if not paths.matches(trainer.frozen, path)),
        flops=flops.count(trainer.step, state, batch),
        compiled=compiled,
        memory=memory,
        limit=limit(jax.local_devices()[0]),
        checkpoint=sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
    )


def limit(device: Any) -> int | None:
    """Bytes that a device has for a program; None where it does not tell. CPUs share what the machine has."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def checkpoints_at_once(config: Config, *, evaluated: bool) -> int:
    """How many checkpoints lie in a workdir at most: those kept, the best, and one more while it is written."""
    return config.train.keep + (evaluated and config.train.keep_best is not None) + 1


def seconds_a_step(trainer: Trainer, compiled: Any, state: Any, batches: Iterator[tuple[int, Batch]], steps: int) -> tuple[float, float]:
    """(seconds of a step with its batch, those of them that it waits for the batch), the mean of `steps` after a first one."""
    waited, start = 0.0, 0.0
    for number in range(steps + 1):
        before = time.perf_counter()
        _, batch = next(batches)
        waited += time.perf_counter() - before
        state, _ = compiled(state, to_global(trainer.mesh, batch))
        jax.block_until_ready(state)
        if number == 0:
            waited, start = 0.0, time.perf_counter()
    return (time.perf_counter() - start) / steps, waited / steps
