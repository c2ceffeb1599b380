"""Pairs a second with frozen towers that run in each step, and with their features stored beforehand, on the same rows.

    python -m benchmarks.precomputed --turns=3

An image tower of ViT-B/32's size at 224 pixels and a text tower of MiniLM's, random weights, frozen but for their heads; InfoNCE, and BACL
with BNS (a, b) and CLA. Both sides read through the input pipeline and take turns in one process; a rate is the median of the turns', with
the time in which the step waits for data. The rows are random pictures that are held in memory, so that the whole step decodes none.
Storing them (launch.precompute's work) is timed apart: as many rows as it takes a second would be lost to it once.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from bacl_jax.config import Config, from_config_dict
from bacl_jax.config_objective import BNSConfig, CLAConfig
from bacl_jax.data import Tokenizer, batches
from bacl_jax.data.features import DTYPES
from bacl_jax.data.source import ArraySource, DataSet, assemble
from bacl_jax.mesh import make_mesh, to_global
from bacl_jax.train import precompute
from bacl_jax.train.step import Trainer, build

TURNS = flags.DEFINE_integer("turns", 3, "Turns of each side.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 64, "Pairs a step.", lower_bound=8)
ROWS = flags.DEFINE_integer("rows", 256, "Training rows.", lower_bound=8)
DTYPE = flags.DEFINE_enum("dtype", DTYPES[0], DTYPES, "Type of the stored numbers.")
STEPS = {"full": 1, "stored": 20}  # of a turn
WORDS = 2000  # of which captions are made
OBJECTIVES = {"infonce": False, "bacl": True}


def config_of(bacl: bool) -> Config:
    """The towers frozen but for their heads; the add-on's parts as configs/laion400m.py has them."""
    config = from_config_dict(
        {
            "data": {"image_size": 224, "context_length": 32, "augment_scale": 0.0, "augment_shift": 0.0},
            "model": {
                "embed_dim": 512,
                "image": {"kind": "clip", "width": 768, "depth": 12, "heads": 12, "patch": 32},
                "text": {"kind": "bert", "width": 384, "depth": 6, "heads": 12, "activation": "gelu"},
            },
            "optim": {"frozen": ("towers/(image|text)/(?!head/).*",)},
            "train": {"batch_size": BATCH.value},
            "eval": {"batch_size": BATCH.value},
        }
    )
    bns, cla = BNSConfig(enabled=bacl), CLAConfig(enabled=bacl, width=256, heads=4)
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, bns=bns, cla=cla))


def dataset_of(config: Config) -> DataSet:
    """Random pictures with captions of eight to twenty words."""
    random, size = np.random.default_rng(0), config.data.image_size
    captions = [" ".join(f"w{word}" for word in random.integers(0, WORDS, random.integers(8, 21))) for _ in range(ROWS.value)]
    pictures = random.integers(0, 256, (ROWS.value, size, size, 3), dtype=np.uint8)
    keys = [str(row) for row in range(ROWS.value)]
    return assemble(
        name="random",
        description="random pictures",
        make_source=lambda rows: ArraySource([pictures[i] for i in rows], [captions[i] for i in rows], [keys[i] for i in rows]),
        row_captions=captions,
        row_splits=["train"] * ROWS.value,
        skipped={},
    )


class Side:
    """One way to train: its state, and the batches that it reads."""

    def __init__(self, trainer: Trainer, source: Iterator[tuple[int, Any]]):
        self._trainer, self._source, self._state = trainer, source, trainer.init(0)
        self.rates: list[float] = []
        self._train(1)  # compiles

    def turn(self, steps: int) -> None:
        self.rates.append(self._train(steps))

    def _train(self, steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            batch = to_global(self._trainer.mesh, next(self._source)[1])
            self._state, _ = self._trainer.step(self._state, batch)
        jax.block_until_ready(self._state)
        return steps * self._trainer.config.train.batch_size / (time.perf_counter() - start)


def main(argv: list[str]) -> None:
    dataset = dataset_of(config_of(False))
    tokenizer = Tokenizer.train(dataset.captions, config_of(False).data)
    with tempfile.TemporaryDirectory() as folder:
        for name, bacl in OBJECTIVES.items():
            config = config_of(bacl)
            mesh = make_mesh(config.mesh)
            if not any(Path(folder).iterdir()):
                trainer, start = build(config, tokenizer.vocab_size, mesh), time.perf_counter()
                precompute.write(trainer, trainer.init(0).params, dataset, tokenizer, Path(folder), dtype=DTYPE.value)
                print(json.dumps({"name": "precompute", "pairs_per_second": ROWS.value / (time.perf_counter() - start)}), flush=True)
            used = dataclasses.replace(config, data=dataclasses.replace(config.data, features=folder))
            features = precompute.opened(used, dataset, tokenizer)
            assert features is not None
            kinds = dict.fromkeys(features.index.towers, features.index.dtype)
            sides = {
                side: Side(
                    build(config, tokenizer.vocab_size, mesh, stored), batches(dataset, tokenizer, config, start_step=0, stored=files)
                )
                for side, files, stored in (("full", None, {}), ("stored", features, kinds))
            }
            for _ in range(TURNS.value):
                for side, steps in STEPS.items():
                    sides[side].turn(steps)
            rates = {f"{side}_pairs_per_second": statistics.median(one.rates) for side, one in sides.items()}
            each = [b / a for a, b in zip(sides["full"].rates, sides["stored"].rates, strict=True)]
            print(json.dumps({"name": name} | rates | {"ratio": statistics.median(each), "ratios": each}), flush=True)


if __name__ == "__main__":
    app.run(main)
