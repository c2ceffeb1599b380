"""Trains a dual encoder and evaluates it zero-shot; run again, the same command goes on where it was.

    python -m launch.train --config=configs/emoji_bacl.py --workdir=runs/bacl
    python -m launch.train --config=configs/manifest.py --workdir=runs/mine --config.data.path=pairs.csv

--config   a file with get_config(), see configs/; its fields are set by --config.<field>=<value>
--workdir  folder of the run: config.json, rows.json, checkpoints/, metrics.jsonl, tensorboard/, eval/, plots/,
           done (written last). One that belongs to another config, or in which another process trains, is refused.
--check    trains nothing and writes nothing: looks at config, data, workdir, devices, memory and disk, takes a few steps, and prints
           the plan of the run, or a line for each thing that is wrong.

Several processes make one run, each started with --coordinator=host:port (of process 0) --processes=N --process=I; launch.local does so on
one machine. --wait_seconds: how long they wait for each other at the start (120); --devices_per_process: that a CPU plays.

SIGTERM and Ctrl-C save and leave with code 0, or --preempted_code where 0 would be taken for the end of the run. Exit codes: 0 done or
preempted, 2 bad usage or config, else a crash.
"""

import contextlib
import sys

from absl import flags
from ml_collections import config_flags

from bacl_jax.config import ConfigError, from_config_dict
from bacl_jax.train.workdir import lock_workdir
from launch import command, distributed, early

CONFIG = config_flags.DEFINE_config_file("config", help_string="Python file with get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
PREEMPTED = flags.DEFINE_integer("preempted_code", 0, "Exit code of a run that a signal ended.", lower_bound=0, upper_bound=255)
CHECK = flags.DEFINE_bool("check", False, "Whether to look at the run and print its plan, and not to train.")


def main() -> None:
    if CONFIG.value is None or WORKDIR.value is None:
        raise ConfigError("--config and --workdir must be given: --config=configs/emoji_bacl.py --workdir=runs/bacl; --help tells more")
    if CHECK.value:
        config = early.check(CONFIG.value, WORKDIR.value, distributed.devices_asked())
        from launch import check

        return check.run(config, WORKDIR.value)
    config = from_config_dict(CONFIG.value)
    for problem in early.problems(config, WORKDIR.value, distributed.devices_asked()):
        raise problem
    lock = lock_workdir(WORKDIR.value) if distributed.is_first() else contextlib.nullcontext()
    with lock, distributed.joined(config, WORKDIR.value):
        from bacl_jax.train.hooks import Preemption  # and with it JAX, which takes seconds: what is wrong is said before
        from bacl_jax.train.tracing import Asked
        from launch import session

        with Asked() as asked, Preemption() as preemption:
            finished = session.train(config, WORKDIR.value, preemption, asked)
        if not finished:
            print("preempted, resume with the same command")
            sys.exit(PREEMPTED.value)


if __name__ == "__main__":
    command.run(main, __doc__)
