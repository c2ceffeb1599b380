"""Trains InfoNCE and BACL on one data set with several seeds, one run after the other, and prints the test split's results beside chance.

    python -m launch.example --config=configs/stamps_audio_bacl.py --workdir=runs/example-audio

--config   a file with get_config() whose objective is BACL; InfoNCE is the same without objective.bns and objective.cla
--workdir  folder of the runs: <method>-<seed> each, and table.json; killed at any moment, the same command goes on with what is missing
--seeds    runs of each method

Data are read once, and programs compiled once for all seeds. A field set by --config.<field>=<value> holds for every run.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from bacl_jax.config import ConfigError, from_config_dict
from launch import command

CONFIG = config_flags.DEFINE_config_file("config", help_string="Python file with get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each method.", lower_bound=1)


def main() -> None:
    if CONFIG.value is None or WORKDIR.value is None:
        raise ConfigError("--config and --workdir must be given: --config=configs/stamps_audio_bacl.py --workdir=runs/example-audio")
    config, root = from_config_dict(CONFIG.value), Path(WORKDIR.value)
    import jax

    from launch import beginning, example_table

    if jax.device_count() == 1:  # of several see bacl_jax/mesh.py:compile_anew
        jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    dataset, results = beginning.read_data(config), {}
    print(dataset.description)
    for seed in range(SEEDS.value):
        for name, one in example_table.methods(config).items():
            one = dataclasses.replace(one, seed=config.seed + seed)
            results.setdefault(name, []).append(example_table.finished(one, root / f"{name}-{seed}", dataset))
    (root / "table.json").write_text(json.dumps(results, indent=1) + "\n")
    example_table.show(results, config.eval.report)


if __name__ == "__main__":
    command.run(main, __doc__)
