"""Runs a set of training runs, each in a process of its own, some at a time; finished ones are kept, so the set can be resumed.

The processes share a cache of compiled steps, in the folder of the runs: what differs in the seed alone is compiled once.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import queue
import runpy
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import rich.progress

from bacl_jax.config import Config, flatten, from_config_dict
from bacl_jax.train.checkpoint import check_workdir

SWITCHED = {  # a switch and what it switches
    "objective.bns.enabled": ("objective.bns.", "optim.policy_"),
    "objective.cla.enabled": ("objective.cla.", "optim.cross_lr"),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One run: a config file, what it changes there, and its folder's name. `labels` go to the results table as they are."""

    config: str
    overrides: Mapping[str, Any]
    labels: Mapping[str, Any]
    name: str


def command(point: Point, workdir: Path) -> list[str]:
    """The command that trains and evaluates a point; the same command resumes it."""
    flags = [f"--config.{key}={value}" for key, value in point.overrides.items()]
    return [sys.executable, "-m", "launch.train", f"--config={point.config}", f"--workdir={workdir}", *flags]


def result(point: Point, workdir: Path, steps: int) -> dict[str, Any] | None:
    """The row of a finished point: labels, its acting fields as JSON, steps, milliseconds a step, metrics. None while it is not finished.

    launch.train writes DIR/done last.
    """
    files = sorted((workdir / "eval" / str(steps)).glob("*.json"))
    if not files or not (workdir / "done").exists():
        return None
    metrics: dict[str, Any] = {}
    for file in files:
        metrics |= {k: v for k, v in json.loads(file.read_text())["metrics"].items() if k != "n"}
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    times = [(b["wall_seconds"] - a["wall_seconds"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(log) if b["step"] > a["step"]]
    return {
        **point.labels,
        "config": json.dumps(acting_fields(config_of(point))),
        "steps": steps,
        "step_ms": 1e3 * statistics.median(times) if times else float("nan"),
        **metrics,
    }


def config_of(point: Point) -> Config:
    """The config that a point trains with. ConfigError where its file or an override is wrong."""
    settings = runpy.run_path(point.config)["get_config"]()
    settings.update_from_flattened_dict(dict(point.overrides))
    return from_config_dict(settings)


def acting_fields(config: Config) -> dict[str, Any]:
    """The fields that act, flat and as JSON has them: those of a part that is switched off are left out."""
    flat = _as_json(config)
    off = [prefix for switch, prefixes in SWITCHED.items() if not flat[switch] for prefix in prefixes]
    return {key: value for key, value in flat.items() if key in SWITCHED or not key.startswith(tuple(off))}


def _as_json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(flatten(config)))


def comes_from(row_config: str, config: Config) -> bool:
    """Whether a kept row was made by `config`. A field that did not exist then counts as its default, so that a new one keeps old rows."""
    try:
        made_by = json.loads(row_config)
    except ValueError:
        return False
    now, default = acting_fields(config), _as_json(Config())
    return set(made_by) <= set(now) and all(made_by.get(key, default[key]) == value for key, value in now.items())


def run(points: Iterable[Point], folder: Path, *, workers: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """Runs what is not finished, `workers` at a time, each on cores of its own; calls `keep` with the row of each that is.

    A point that fails is tried once more, then named on stderr and left out. ConfigError, before anything runs, where the
    folder of a point belongs to another config. Cost: the sum of the runs over `workers`.
    """
    points = list(points)
    for point in points:
        check_workdir(folder / point.name, config_of(point))
    cores = sorted(os.sched_getaffinity(0))
    environment = {"JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").resolve())} | os.environ
    shares: queue.Queue[list[int]] = queue.Queue()
    for worker in range(workers):
        shares.put(cores[worker::workers] or cores)

    def one(point: Point) -> dict[str, Any] | None:
        workdir, steps = folder / point.name, int(point.overrides["train.steps"])
        mine = shares.get()
        try:
            for _ in range(2):
                if (found := result(point, workdir, steps)) is not None:
                    return found
                workdir.mkdir(parents=True, exist_ok=True)
                with (workdir / "output.txt").open("a") as output:
                    process = subprocess.Popen(
                        command(point, workdir), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
                    )
                    os.sched_setaffinity(process.pid, mine)
                    process.wait()
            if (found := result(point, workdir, steps)) is None:
                print(f"failed twice: {point.name}, see {workdir / 'output.txt'}", file=sys.stderr)
            return found
        finally:
            shares.put(mine)

    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with concurrent.futures.ThreadPoolExecutor(workers) as pool, rich.progress.Progress(*columns) as shown:
        task = shown.add_task("runs", total=len(points))
        for found in concurrent.futures.as_completed([pool.submit(one, point) for point in points]):
            shown.advance(task)
            if (row := found.result()) is not None:
                keep(row)
