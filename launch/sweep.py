"""Runs a config with many settings, each a point with a folder of its own; run again, the same command goes on with what is missing.

    python -m launch.sweep --config=configs/emoji_bacl.py --sweep=configs/sweeps/curriculum.py --workdir=runs/curriculum
    python -m launch.sweep --config=configs/emoji_bacl.py --sweep=configs/sweeps/adaptive.py --workdir=runs/adaptive --trials=20
    python -m launch.sweep --config=configs/emoji_bacl.py --sweep=configs/sweeps/cla.py --workdir=runs/cla --sbatch=runs/cla.sh

--config   a file with get_config(); what --config.<field>=<value> sets holds for every point
--sweep    a file with sweep(), which yields overrides such as {"objective.bns.k": 8}, or suggest(trial), for Optuna
--workdir  folder of the sweep: <point>/ (workdir of its run), sweep.parquet, best.py, plots/, optuna.db
--metric   what the points are compared by, on validation (i2t_R@1)
--workers  runs at a time on this machine: by default one a GPU, or two cores a run
--trials   points in all, where the file has suggest(trial)
--point    runs one point alone, by its number from 0; --sbatch writes a Slurm script whose task i runs point i
--report   the table, plots and best.py of what has ended; runs nothing

A point that fails is tried once more. SIGTERM and Ctrl-C let the runs save and leave with code 0. Exit codes: 0 done or stopped,
1 no point (or not the one of --point) got to its end, 2 bad usage or config.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from bacl_jax.config import ConfigError
from launch import command, sweep_array, sweeps

CONFIG = config_flags.DEFINE_config_file("config", help_string="Python file with get_config().")
SWEEP = flags.DEFINE_string("sweep", None, "Python file with sweep() or suggest(trial).")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.")
METRIC = flags.DEFINE_string("metric", "i2t_R@1", "What the points are compared by, on validation.")
WORKERS = flags.DEFINE_integer("workers", None, "Runs at a time.", lower_bound=1)
TRIALS = flags.DEFINE_integer("trials", 20, "Points in all, where the file has suggest(trial).", lower_bound=1)
POINT = flags.DEFINE_integer("point", None, "Number of the one point to run.")
SBATCH = flags.DEFINE_string("sbatch", None, "File for a Slurm script.")
REPORT = flags.DEFINE_bool("report", False, "Runs nothing.")


def main() -> None:
    if CONFIG.value is None or SWEEP.value is None or WORKDIR.value is None:
        raise ConfigError("--config, --sweep and --workdir must be given, as in --sweep=configs/sweeps/curriculum.py; --help tells more")
    sweeps.check_alone(POINT, SBATCH, REPORT)
    flag, folder, file = flags.FLAGS["config"], Path(WORKDIR.value), sweeps.read(Path(SWEEP.value))
    sweep = sweeps.Sweep(file, config_flags.get_config_filename(flag), config_flags.get_override_values(flag), METRIC.value)
    points = sweep.known_points(needed=POINT.value is not None or SBATCH.value is not None)
    if SBATCH.value is not None:
        return print(sweep_array.write(Path(SBATCH.value), len(points), folder, sys.argv[1:]))
    from launch import sweep_session  # and with it pandas and matplotlib, which take seconds: what is wrong is said before

    if POINT.value is not None:
        sweep_session.run_one(sweep, points, folder, POINT.value)
    elif REPORT.value:
        sweep_session.report(sweep, points, folder)
    else:
        sweep_session.run(sweep, points, folder, workers=WORKERS.value, trials=TRIALS.value)


if __name__ == "__main__":
    command.run(main, __doc__)
