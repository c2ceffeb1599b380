"""The roofline of bacl_jax/train/cost.py against a measured step on this machine.

    python -m benchmarks.cost_model --steps=10

The machine's rates are measured first: its peak by the matrix product of the towers' MLP, its memory bandwidth by a copy. Then an InfoNCE
step of two small transformers (6.15 M parameters) is estimated from its program and measured. Needs a machine that does nothing else.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from bacl_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, TextConfig, TrainConfig, VisionConfig
from bacl_jax.mesh import AXES, to_global
from bacl_jax.train import cost
from bacl_jax.train import flops as counted
from bacl_jax.train.ahead import abstract_batch
from bacl_jax.train.hlo import Program
from bacl_jax.train.step import build

STEPS = flags.DEFINE_integer("steps", 10, "Measured steps.", lower_bound=1)
COPIED = 2**26  # float32 numbers: 256 MiB, more than a cache holds
CONFIG = Config(
    data=DataConfig(image_size=64, context_length=32, vocab_size=8192),
    model=ModelConfig(
        embed_dim=192, image=VisionConfig(kind="vit", width=192, depth=6, heads=3, patch=8), text=TextConfig(width=192, depth=4, heads=3)
    ),
    objective=ObjectiveConfig(bank_size=128),
    optim=OptimConfig(lr=1e-3),
    train=TrainConfig(batch_size=128),
)


def median_seconds(function: Callable[..., Any], *arguments: Any, times: int = 10) -> float:
    """Median wall-clock of a call until its result is there; the first call is left out."""
    jax.block_until_ready(function(*arguments))
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def machine() -> cost.Chip:
    """This machine's rates; one device, so none between devices."""
    image = CONFIG.model.image
    rows = CONFIG.train.batch_size * (CONFIG.data.image_size // image.patch) ** 2
    a, b = jnp.ones((rows, image.width)), jnp.ones((image.width, image.width * image.mlp_ratio))
    peak = 2 * rows * image.width * image.width * image.mlp_ratio / median_seconds(jax.jit(jnp.matmul), a, b)
    bandwidth = 2 * 4 * COPIED / median_seconds(jax.jit(jnp.negative), jnp.ones(COPIED))
    return cost.Chip(hbm=float("inf"), flops=peak, bandwidth=bandwidth, interconnect=1.0, links=1)


def random_batch() -> Any:
    """Random pictures and captions in the form of CONFIG."""
    random, shapes = np.random.default_rng(0), abstract_batch(CONFIG, one_device())

    def fill(x: Any) -> np.ndarray:
        return np.ones(x.shape, bool) if x.dtype == bool else random.integers(0, 256, x.shape).astype(x.dtype)

    return to_global(one_device(), jax.tree.map(fill, shapes))


def one_device() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES)


def main(argv: list[str]) -> None:
    chip = machine()
    print(f"this machine: {chip.flops / 1e9:.0f} GFLOP/s, {chip.bandwidth / 1e9:.1f} GB/s", flush=True)
    trainer, batch = build(CONFIG, CONFIG.data.vocab_size, one_device()), random_batch()
    state = trainer.init(0)
    work = counted.count(trainer.step, state, batch)
    compiled = trainer.step.lower(state, batch).compile()
    moved = Program(compiled.as_text()).memory_bytes()
    taken = []
    for _ in range(STEPS.value + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        taken.append(time.perf_counter() - start)
    measured, estimate = statistics.median(taken[1:]), cost.seconds(chip, work, moved)
    print(
        f"a step: {work / 1e9:.1f} GFLOP in {1e3 * work / chip.flops:.0f} ms, {moved / 1e9:.2f} GB in {1e3 * moved / chip.bandwidth:.0f} ms"
    )
    print(f"estimate {1e3 * estimate:.0f} ms, measured {1e3 * measured:.0f} ms, measured / estimate {measured / estimate:.2f}")


if __name__ == "__main__":
    app.run(main)
