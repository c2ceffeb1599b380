"""The roofline of bacl_jax/train/cost.py against a measured step on this machine.

    python -m benchmarks.cost_model --steps=10

The machine's rates are measured: its peak by the matrix product of the towers' MLP, its memory bandwidth by a copy. An InfoNCE step of two
small transformers (6.15 M parameters) is estimated from its program and measured. Needs a machine that does nothing else.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from bacl_jax.config import Config, DataConfig, OptimConfig, TrainConfig
from bacl_jax.config_model import ModelConfig, TextConfig, VisionConfig
from bacl_jax.config_objective import ObjectiveConfig
from bacl_jax.mesh import make_mesh, to_global
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


def seconds(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Wall-clock of one call until its result is there, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def random_batch() -> Any:
    """Random pictures and captions in the form of CONFIG."""
    random, shapes = np.random.default_rng(0), abstract_batch(CONFIG, one_device())

    def fill(x: Any) -> np.ndarray:
        return np.ones(x.shape, bool) if x.dtype == bool else random.integers(0, 256, x.shape).astype(x.dtype)

    return to_global(one_device(), jax.tree.map(fill, shapes))


def one_device() -> jax.sharding.Mesh:
    return make_mesh(CONFIG.mesh, jax.devices()[:1])


def main(argv: list[str]) -> None:
    image = CONFIG.model.image
    rows, wide = CONFIG.train.batch_size * (CONFIG.data.image_size // image.patch) ** 2, round(image.width * image.mlp_ratio)
    product, factors = jax.jit(jnp.matmul), (jnp.ones((rows, image.width)), jnp.ones((image.width, wide)))
    copy, source = jax.jit(jnp.negative), jnp.ones(COPIED)
    trainer, batch = build(CONFIG, CONFIG.data.vocab_size, one_device()), random_batch()
    state = trainer.init(0)
    work = counted.count(trainer.step, state, batch)
    step = trainer.step.lower(state, batch).compile()
    moved = Program(step.as_text()).traffic()
    taken: dict[str, list[float]] = {"product": [], "copy": [], "step": []}
    for _ in range(STEPS.value + 1):  # in turns, so that what disturbs the machine disturbs all of them; the first turn is left out
        taken["product"].append(statistics.median(seconds(product, *factors)[0] for _ in range(5)))
        taken["copy"].append(seconds(copy, source)[0])
        once, (state, _) = seconds(step, state, batch)
        taken["step"].append(once)
    median = {name: statistics.median(times[1:]) for name, times in taken.items()}
    peak, bandwidth = 2 * rows * image.width * wide / median["product"], 2 * 4 * COPIED / median["copy"]
    chip = cost.Chip(hbm=float("inf"), flops=peak, bandwidth=bandwidth, interconnect=1.0, links=1)  # one device: nothing between devices
    estimate, measured = cost.seconds(chip, work, moved), median["step"]
    print(f"this machine: {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s")
    print(f"a step: {work / 1e9:.1f} GFLOP, {moved.beside / 1e9:.2f} GB moved beside them and {moved.alone / 1e9:.2f} GB alone")
    print(f"estimate {1e3 * estimate:.0f} ms, measured {1e3 * measured:.0f} ms, measured / estimate {measured / estimate:.2f}")


if __name__ == "__main__":
    app.run(main)
