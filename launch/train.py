"""Trains a dual encoder and evaluates it zero-shot; run again, the same command goes on where it was.

    python -m launch.train --config=configs/emoji_bacl.py --workdir=runs/bacl
    python -m launch.train --config=configs/manifest.py --workdir=runs/mine --config.data.path=pairs.csv

--config   a file with get_config(), see configs/; its fields are set by --config.<field>=<value>
--workdir  folder of the run: config.json, rows.json, checkpoints/, metrics.jsonl, tensorboard/, eval/, plots/,
           done (written last). One that belongs to another config, or in which another process trains, is refused.

Several processes make one run, each started with --coordinator=host:port (of process 0) --processes=N --process=I; launch.local does so on
one machine. --wait_seconds: how long they wait for each other at the start (120); --devices_per_process: that a CPU plays.

SIGTERM and Ctrl-C save and leave with code 0. Exit codes: 0 done or preempted, 2 bad usage or config, else a crash.
"""

from absl import flags
from ml_collections import config_flags

from bacl_jax.config import ConfigError, from_config_dict
from bacl_jax.train.checkpoint import lock_workdir
from bacl_jax.train.hooks import Preemption
from launch import command, distributed, session

CONFIG = config_flags.DEFINE_config_file("config", help_string="Python file with get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")


def main() -> None:
    if CONFIG.value is None or WORKDIR.value is None:
        raise ConfigError("--config and --workdir must be given: --config=configs/emoji_bacl.py --workdir=runs/bacl; --help tells more")
    config = from_config_dict(CONFIG.value)
    with distributed.joined(config, WORKDIR.value), lock_workdir(WORKDIR.value), Preemption() as preemption:
        if not session.train(config, WORKDIR.value, preemption):
            print("preempted, resume with the same command")


if __name__ == "__main__":
    command.run(main, __doc__)
