"""What a run has written so far, read for the report: settings, metrics, results. What cannot be read is told and left out."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bacl_jax.config import Config
from bacl_jax.eval.page_charts import finite
from bacl_jax.eval.report import read_metrics
from bacl_jax.train import goodput
from bacl_jax.train.goodput import Start
from bacl_jax.train.workdir import read_config

COUNTS = {
    "n": "queries",
    "n_left_out": "pairs left out",
    "n_captions": "captions of the split",
    "n_captions_all": "captions in all",
    "n_images_all": "images in all",
}
PREFIXES = {
    "i2t_": "image to text, ",
    "t2i_": "text to image, ",
    "a2t_": "sound to text, ",
    "t2a_": "text to sound, ",
    "v2t_": "clip to text, ",
    "t2v_": "text to clip, ",
    "f2t_": "all together to text, ",
    "t2f_": "text to all together, ",
    "halftrue_": "half-true, ",
    "ael": "AEL",
}
FIRST = {"retrieval": 0, "halftrue": 1, "localization": 2}  # the order of tasks; the others follow by name
SHOWN_STARTS = 6
BESIDE = {"blind": "_blind", "baseline head": "_baseline", "untrained": "_untrained", "chance": "_chance"}  # column -> suffix


@dataclasses.dataclass(frozen=True)
class Result:
    """One file of DIR/eval. subfolder: "", or the split where it is not the reported one."""

    task: str
    data: str
    step: int
    subfolder: str
    metrics: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Record:
    """A run as its files tell it. records: the lines of metrics.jsonl. notes: what could not be read, and what that means.

    starts: where its time went, start by start.
    """

    name: str
    config: Config
    records: list[dict[str, Any]]
    results: list[Result]
    notes: list[str]
    starts: list[Start] = dataclasses.field(default_factory=list)

    @property
    def last(self) -> Mapping[str, Any]:
        return self.records[-1] if self.records else {}


@dataclasses.dataclass(frozen=True)
class Table:
    """A caption, the heads of the columns, and rows of texts: the label, then the cells. strong: (row, column) of cells to stress."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[tuple[int, int]] = frozenset()


def read(workdir: str | os.PathLike[str]) -> Record:
    """Raises ConfigError where `workdir` is no workdir of a run."""
    workdir, notes = Path(workdir), []
    config = read_config(workdir)
    log = workdir / "metrics.jsonl"
    records = read_metrics(log) if log.exists() else []
    lines = sum(1 for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()) if log.exists() else 0
    if lines > len(records):
        notes.append(f"metrics.jsonl: {lines - len(records)} of {lines} lines are not whole and were left out.")
    results = []
    for path in sorted((workdir / "eval").glob("*/*.json")) + sorted((workdir / "eval").glob("*/*/*.json")):
        result = _result(path, workdir / "eval")
        if result is None:
            notes.append(f"{path.relative_to(workdir)}: not a result as an evaluation writes it; left out.")
        else:
            results.append(result)
    results = sorted(results, key=lambda one: one.step)
    return Record(workdir.resolve().name, config, records, results, notes, goodput.read(workdir))


def _result(path: Path, folder: Path) -> Result | None:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        metrics = {str(name): finite(value) for name, value in entry["metrics"].items()}
        subfolder = "/".join(path.relative_to(folder).parts[1:-1])
        return Result(str(entry["task"]), str(entry.get("data", "")), int(entry["step"]), subfolder, metrics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def grouped(results: list[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """(task, data, subfolder) -> results by step; of a task, those of the run's report come first."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.task, result.data, result.subfolder), []).append(result)

    def place(key: tuple[str, str, str]) -> tuple:
        task, data, subfolder = key
        return task not in FIRST, FIRST.get(task, 0), task, subfolder != "", data, subfolder

    return {key: groups[key] for key in sorted(groups, key=place)}


def bases(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics' names, each once, without those that only stand beside another."""
    names: dict[str, None] = {}
    for name in metrics:
        suffix = next((suffix for suffix in BESIDE.values() if name.endswith(suffix)), "")
        names[name.removesuffix(suffix)] = None
    return list(names)


def heading(task: str, data: str, subfolder: str) -> str:
    return task + (f" ({subfolder})" if subfolder else "") + (f" on {data}" if data else "")


def task_table(results: list[Result]) -> Table:
    """One task on one data set: a row a metric, a column a step, then what stands beside it at the newest step: chance, blind and so on."""
    newest = results[-1]
    beside = {label: suffix for label, suffix in BESIDE.items() if any(name.endswith(suffix) for name in newest.metrics)}
    names = sorted(dict.fromkeys(name for result in reversed(results) for name in bases(result.metrics)), key=is_count)
    rows = tuple(
        (
            label(name),
            *(shown(name, result.metrics.get(name)) for result in results),
            *(shown(name, newest.metrics.get(name + suffix)) for suffix in beside.values()),
        )
        for name in names
    )
    return Table(heading(newest.task, newest.data, newest.subfolder), ("", *(f"step {result.step:,}" for result in results), *beside), rows)


def time_table(starts: list[Start]) -> Table | None:
    """Where the time of training went, in all and in each of the newest starts; None where nothing is known."""
    if not starts:
        return None
    newest = list(enumerate(starts, 1))[-SHOWN_STARTS:]
    columns = [goodput.totals(starts), *(goodput.totals([start]) for _, start in newest)]
    whole = goodput.shares(columns[0])
    rows = [(name, f"{100 * whole[name]:.1f} %", *(goodput.clock(each[name]) for each in columns)) for name in goodput.ACTIVITIES]
    rows.append(("all", "100.0 %", *(goodput.clock(sum(each.values())) for each in columns)))
    heads = ("", "share", "time", *(f"start {number}" for number, _ in newest))
    return Table(f"where the time went, {len(starts)} start{'s' if len(starts) > 1 else ''}", heads, tuple(rows))


def label(name: str) -> str:
    """A metric's name in words."""
    if is_count(name):
        return COUNTS.get(name, "number of " + name.removeprefix("n_").removeprefix("n/").replace("_", " "))
    for short, long in PREFIXES.items():
        if name.startswith(short):
            name = long + name.removeprefix(short)
    if name.endswith("_baseline"):
        name = name.removesuffix("_baseline") + ", baseline head"
    if name.endswith("_all") and "beat" not in name:
        name = name.removesuffix("_all") + ", among all"
    return name.replace("_", " ").replace("/", ": ", 1)


def is_count(name: str) -> bool:
    return name == "n" or name.startswith(("n_", "n/", "left_out/"))


def is_score(name: str) -> bool:
    """Whether more is better: a share of right answers in percent. (`ael_token` is high for any network; `weight` is the probe's.)"""
    other = ("median_rank", "ael_token", "unknown_tokens", "cut_captions", "_lost/", "weight")
    return not is_count(name) and not any(word in name for word in other)


def shown(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if is_count(name) else f"{value:.1f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"
