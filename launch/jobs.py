"""Trains on a cluster or a cloud, through an engine that is there already; what it runs is launch.train.

    python -m launch.jobs --engine=slurm --job=configs/jobs/slurm.py --config=configs/emoji_bacl.py --workdir=/shared/runs/bacl
    python -m launch.jobs --engine=slurm --job=configs/jobs/slurm.py --config=configs/emoji_bacl.py --workdir=/shared/runs/bacl --dry_run
    python -m launch.jobs --engine=slurm --action=logs --config=configs/emoji_bacl.py --workdir=/shared/runs/bacl

--engine   slurm, tpu_vm (Cloud TPU VMs), gke (a JobSet on Kubernetes), xpk, or sky (SkyPilot: any cloud)
--action   submit, status, logs, delete; with slurm, gke and sky also check, which has the engine look at the job without taking it
--job      a file with get_config() of the machines, see configs/jobs/; its fields are set by --job.<field>=<value>
--config, --config.<field>=<value>, --workdir   as for launch.train, and checked here before anything is submitted; the workdir is a folder
           that all machines of the job see under this path
--files    folder of the scripts that are written: FILES/<name of the job>/
--dry_run  prints the files and the commands, and does nothing

Submitted again, a job goes on where the run was. Exit codes: 0 done, 2 bad usage, config or job, else that of the command that failed.
"""

import sys
from pathlib import Path
from typing import Any, cast

from absl import flags
from ml_collections import config_flags

from bacl_jax.config import ConfigError, from_config_dict
from launch import command, engines
from launch.job import Machines, describe

CONFIG = config_flags.DEFINE_config_file("config", help_string="Python file with get_config().")
JOB = config_flags.DEFINE_config_file("job", help_string="Python file with get_config() of the machines.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
ENGINE = flags.DEFINE_string("engine", "slurm", "What runs the job.")
ACTION = flags.DEFINE_string("action", "submit", "What to do with it.")
FILES = flags.DEFINE_string("files", "runs/jobs", "Folder of what is written.")
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Only print.")


def main() -> None:
    if CONFIG.value is None or WORKDIR.value is None or JOB.value is None:
        raise ConfigError("--job, --config and --workdir must be given: --job=configs/jobs/slurm.py ...; --help has examples")
    from_config_dict(CONFIG.value)
    flag = cast(Any, flags.FLAGS["config"])
    overrides = [f"{name}={value}" for name, value in flag.override_values.items()]
    job = describe(JOB.value.to_dict(), config=flag.config_filename, workdir=WORKDIR.value, overrides=overrides)
    plan = engines.plan(ENGINE.value, ACTION.value, job, Path(FILES.value) / job.name)
    if DRY_RUN.value:
        print(plan)
    elif code := plan.run():
        sys.exit(code)


if __name__ == "__main__":
    command.run(main, __doc__, job=(Machines, "configs/jobs/base.py"))
