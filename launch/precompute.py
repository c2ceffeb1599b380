"""Stores what frozen towers make of the training rows, so that training need not run them.

    python -m launch.precompute --config=configs/emoji_minilm.py --workdir=runs/features

--config    the config of the run to come, with the same --config.<field>=<value>: every tower is stored whose parameters are all frozen,
            but those of its head
--workdir   folder of the features: ArrayRecord files and features.json. The run gets it as --config.data.features
--dtype     float16 or float32 (default: float16)

Stopped, the same command goes on. Exit codes: 0 done, 2 bad usage, config or data, else a crash.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from bacl_jax.config import ConfigError, from_config_dict
from bacl_jax.data.features import DTYPES
from launch import beginning, command

CONFIG = config_flags.DEFINE_config_file("config", help_string="Python file with get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the features.")
DTYPE = flags.DEFINE_enum("dtype", DTYPES[0], DTYPES, "Type of the stored numbers.")


def main() -> None:
    if CONFIG.value is None or WORKDIR.value is None:
        raise ConfigError("--config and --workdir must be given: --config=configs/emoji_bacl.py --workdir=runs/features; --help tells more")
    out = Path(WORKDIR.value)
    index = beginning.precompute(from_config_dict(CONFIG.value), out, DTYPE.value)
    size = sum(shard.bytes for shard in index.shards)
    print(f"{index.rows:,} rows, {' and '.join(index.towers)}, {index.dtype}, {size / 2**20:,.1f} MiB: --config.data.features={out}")


if __name__ == "__main__":
    command.run(main, __doc__)
