"""One training run of a set: its command, its config, and what it leaves when it is finished. `launch/point_runs.py` runs a set."""

import dataclasses
import itertools
import json
import runpy
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bacl_jax.config import Config, flatten, from_config_dict
from launch.command import overridden

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


def is_finished(point: Point, workdir: Path) -> bool:
    """Whether its last step was trained and reported: launch.train writes DIR/done last."""
    steps = str(config_of(point).train.steps)
    return (workdir / "done").exists() and any((workdir / folder / steps).is_dir() for folder in ("eval", "checkpoints"))


def result(point: Point, workdir: Path) -> dict[str, Any] | None:
    """The row of a finished point: labels, its acting fields as JSON, steps, milliseconds a step, metrics.

    None while it is not finished, or where it was not evaluated.
    """
    config = config_of(point)
    files = sorted((workdir / "eval" / str(config.train.steps)).glob("*.json"))
    if not files or not (workdir / "done").exists():
        return None
    metrics: dict[str, Any] = {}
    for file in files:
        metrics |= {k: v for k, v in json.loads(file.read_text())["metrics"].items() if k != "n"}
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    times = [(b["wall_seconds"] - a["wall_seconds"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(log) if b["step"] > a["step"]]
    return {
        **point.labels,
        "config": json.dumps(acting_fields(config)),
        "steps": config.train.steps,
        "step_ms": 1e3 * statistics.median(times) if times else float("nan"),
        **metrics,
    }


def config_of(point: Point) -> Config:
    """The config that a point trains with. ConfigError where its file or an override is wrong."""
    return from_config_dict(overridden(runpy.run_path(point.config)["get_config"]().to_dict(), point.overrides))


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
