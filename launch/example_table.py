"""Runs that are compared with several seeds, as launch.example does, and their table: means and deviations beside chance."""

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bacl_jax.config import Config, ConfigError, changed_fields, listed
from bacl_jax.data import DataSet
from bacl_jax.train.hooks import Preemption
from bacl_jax.train.workdir import lock_workdir, read_config
from launch import session

Metrics = Mapping[str, float]
SHOWN = ("R@1", "R@5", "R@10", "mAP", "MRR", "nDCG", "halftrue_pairwise", "halftrue_beat_all", "accuracy", "f1", "recall", "ael", "seconds")


def methods(config: Config) -> dict[str, Config]:
    """The two that are compared: the config without BNS and CLA, and as it is."""
    o = config.objective
    plain = dataclasses.replace(o, bns=dataclasses.replace(o.bns, enabled=False), cla=dataclasses.replace(o.cla, enabled=False))
    return {"infonce": dataclasses.replace(config, objective=plain), "bacl": config}


def finished(config: Config, workdir: Path, dataset: DataSet) -> dict[str, float]:
    """`read` of a run, which is trained first unless it is done. ConfigError where it was done with another config; SystemExit where a
    signal stops it."""
    if (workdir / "done").exists():
        if changed := changed_fields(read_config(workdir), config):
            raise ConfigError(f"{workdir} was done with another config: {listed(changed)}. Take another --workdir, or delete this folder")
    else:
        print(f"{workdir.name}:")
        with lock_workdir(str(workdir)), Preemption() as preemption:
            if not session.train(config, str(workdir), preemption, dataset=dataset):
                sys.exit("preempted, go on with the same command")
    return read(workdir)


def read(workdir: Path) -> dict[str, float]:
    """All metrics of the run's report, and the seconds that its training took."""
    newest = max((path for path in (workdir / "eval").iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    found: dict[str, float] = {}
    for path in sorted(newest.glob("*.json")):
        found |= {name: value for name, value in json.loads(path.read_text())["metrics"].items() if name not in ("n", "n_pairs")}
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    return found | {"seconds": last["wall_seconds"]}


def rows(results: Mapping[str, Sequence[Metrics]]) -> list[tuple[str, ...]]:
    """(metric, mean and deviation of each method, of the difference of the last to the first seed by seed, chance)."""
    first, out = {}, []
    for runs in results.values():
        first = {**runs[0], **first}
    for name in first:
        leaf = name.rpartition("/")[2]
        if (leaf.partition("_")[2] if "2" in leaf.partition("_")[0] else leaf) not in SHOWN:
            continue
        values = [[run[name] for run in runs if name in run] for runs in results.values()]
        if any(values):
            change = [last - one for one, last in zip(values[0], values[-1], strict=True)] if values[0] and values[-1] else []
            guessed = first.get(f"{name}_chance", math.nan)
            out.append((name, *map(_spread, values), _spread(change, "+"), "" if math.isnan(guessed) else f"{guessed:.1f}"))
    return out


def _spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return "-"
    return f"{statistics.mean(values):{sign}.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def show(results: Mapping[str, Sequence[Metrics]], split: str, console: Console | None = None) -> None:
    """Prints the table of a split's results."""
    runs = len(next(iter(results.values())))
    table = Table(title=f"{split} split, mean ± deviation of {runs} seeds (percent)", title_justify="left")
    for column in ("", *results, "difference", "chance"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows(results):
        table.add_row(*row)
    (console or Console(width=110)).print(table)
