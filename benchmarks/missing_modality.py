"""Rows that lack a modality: training on all rows, half of which lost picture or sound, against the complete rows alone.

    python -m benchmarks.missing_modality --path=FOLDER --workdir=runs/missing

Tux Paint's stamps with pictures, French and Spanish speech and English captions (configs/stamps_trimodal_bacl.py). Three ways, with the
same rows complete in the last two: all rows complete; half of them lacking one; the half that is complete alone. The table is of the
test split, whose rows are complete.
"""

import dataclasses
from pathlib import Path

from absl import app, flags

from bacl_jax import data
from bacl_jax.config import from_config_dict
from configs import stamps_trimodal_bacl
from launch import example_table

PATH = flags.DEFINE_string("path", None, "The unpacked package tuxpaint-stamps-default; None: where launch.fetch put it.")
WORKDIR = flags.DEFINE_string("workdir", "runs/missing", "Folder of the runs.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each way.", lower_bound=1)
SHARE = flags.DEFINE_float("share", 0.5, "Share of the training rows that lose one modality.")


def main(argv: list[str]) -> None:
    base = from_config_dict(stamps_trimodal_bacl.get_config())
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, path=PATH.value))
    ways = {"all complete": (0.0, False), "lacking": (SHARE.value, False), "complete alone": (SHARE.value, True)}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for name, (share, drop) in ways.items():
        stamps = dataclasses.replace(base.data.stamps, lacking=share, drop_lacking=drop)
        config = dataclasses.replace(base, data=dataclasses.replace(base.data, stamps=stamps))
        dataset = data.load(config.data)
        for seed in range(SEEDS.value):
            workdir = Path(WORKDIR.value) / f"{name.replace(' ', '_')}-{seed}"
            results[name].append(example_table.finished(dataclasses.replace(config, seed=seed), workdir, dataset))
    example_table.show(results, "test")


if __name__ == "__main__":
    app.run(main)
