"""The parts of a sweep put together: its points run, on this machine or one of them alone, and what is made of their results."""

import contextlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bacl_jax.config import ConfigError
from bacl_jax.train.workdir import lock_workdir
from launch import sweep_plots
from launch.adaptive import Study, evaluation
from launch.point_runs import Ended, Planned, Workers, default_workers, left, places
from launch.points import Point
from launch.sweep_display import Display, print_table
from launch.sweep_results import Results, write_best
from launch.sweeps import Sweep, check_workdirs


def run(sweep: Sweep, points: list[Point], folder: Path, *, workers: int | None, trials: int) -> None:
    """Runs what is not finished, `workers` at a time (None: `default_workers`); then the table, the pictures and DIR/best.py.

    points: those of `sweep`, which a search makes as it goes.

    Whatever is wrong with the sweep is a ConfigError before anything runs; where no point gets to its end the process ends with code 1.
    """
    if workers is not None and workers > places():
        raise ConfigError(f"--workers={workers}: must be at most {places()}, the GPUs or cores that there are")
    plan: Iterable[Planned]
    if sweep.file.suggest:
        plan, total = Study(sweep, folder, trials).plan(), trials
    else:
        check_workdirs(points, folder)
        ended_first = sorted(points, key=lambda point: left(point, folder) is None)  # what has ended before is in the table at once
        plan, total = map(Planned, ended_first), len(points)
    with lock_workdir(folder):
        results, machine = Results(folder, sweep.metric), Workers(folder, workers or default_workers())
        with Display(total, evaluation(sweep.metric)) as display, contextlib.closing(machine.run(map(display.watched, plan))) as runs:
            for ended in runs:
                if ended.status != "stopped":
                    display.ended(ended, results.add(ended))
        if machine.stopped:
            print("stopped, the same command goes on with what is not finished")
        elif not finish(sweep, folder, results):
            sys.exit(1)


def run_one(sweep: Sweep, points: Sequence[Point], folder: Path, number: int) -> None:
    """Runs one point of a sweep, with all that this process may use; the process ends with code 1 where it fails."""
    if not 0 <= number < len(points):
        raise ConfigError(f"--point={number}: must be from 0 to {len(points) - 1}, the points of --sweep={sweep.file.path}")
    check_workdirs(points[number : number + 1], folder)
    for ended in Workers(folder, 1).run([Planned(points[number])]):
        print(f"{ended.point.name}: {ended.status} {ended.reason}")
        if ended.status == "failed":
            sys.exit(1)


def report(sweep: Sweep, points: Sequence[Point], folder: Path) -> None:
    """The table, the pictures and DIR/best.py of what has ended; nothing is run."""
    points = Study(sweep, folder, 0).ended() if sweep.file.suggest else points
    ended: list[Ended] = [one for point in points if (one := left(point, folder)) is not None]
    if not ended:
        raise ConfigError(f"--workdir={folder}: none of the {len(points)} points has ended there; run the sweep without --report")
    results = Results(folder, sweep.metric)
    for one in ended:
        results.add(one)
    if len(ended) < len(points):
        print(f"{len(points) - len(ended)} of {len(points)} points have not ended")
    finish(sweep, folder, results)


def finish(sweep: Sweep, folder: Path, results: Results) -> bool:
    """Prints the table and writes what there is to write; False where no point is finished."""
    rows = results.rows()
    print_table(rows, results.fields(), sweep.metric)
    pictures = sweep_plots.write(rows, results.fields(), [sweep.metric, *sweep.file.shown], folder)
    best = results.best()
    print("\n".join(map(str, [folder / "sweep.parquet", *pictures])))
    if best is None:
        print(f"no point is finished: see reason in sweep.parquet and output.txt in the folders of {folder}", file=sys.stderr)
        return False
    config = sweep.chosen(results.point(best.names[0]))
    title = f"{best.names[0]}: {sweep.metric} {best} on validation, the best of {len(rows)} points."
    print(f"best: {title}\n{write_best(folder / 'best.py', config, title)}")
    return True
