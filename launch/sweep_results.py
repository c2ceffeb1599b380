"""What a sweep leaves: DIR/sweep.parquet with a row for each point, and DIR/best.py, the config of the best one."""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bacl_jax.config import Config, ConfigError, changed_fields, to_dict
from launch.point_runs import Ended, Log
from launch.points import Point, result
from launch.sweeps import METRICS

SEED = "seed"  # points that differ in it alone count as one, by their mean
CONFIG_FILE = """# {title}
# Written by launch.sweep: the fields that differ from the defaults. Train it with --config={path} and a --workdir of its own.

from ml_collections import ConfigDict

from bacl_jax.config import default_config_dict


def get_config() -> ConfigDict:
    config = default_config_dict()
{lines}
    return config
"""


def row(ended: Ended, folder: Path) -> dict[str, Any]:
    """What is known of a point: its overrides, status, workdir, the reason where it failed, steps, metrics.

    Of a finished point the metrics are those of its report; of any other those of its last evaluation, if there was one. Beside them stand
    the numbers of the last line of its log, such as the loss.
    """
    workdir = folder / ended.point.name
    found = {**ended.point.labels, "status": ended.status, "workdir": str(workdir), "reason": ended.reason}
    records = Log(workdir / "metrics.jsonl").new()
    evaluations = [record for record in records if any("/" in name and name.split("/")[1] in METRICS.values() for name in record)]
    metrics = result(ended.point, workdir) if ended.status == "done" else None
    if metrics is None:
        last = evaluations[-1] if evaluations else {}
        metrics = {name.split("/", 2)[2]: value for name, value in last.items() if name.count("/") >= 2}
    step = {name: value for name, value in (records[-1] if records else {}).items() if "/" not in name and name != "step"}
    metrics = {name: value for name, value in metrics.items() if name not in (*ended.point.labels, "config")}
    return found | {"steps": records[-1]["step"] if records else 0} | step | metrics


@dataclasses.dataclass(frozen=True)
class Best:
    """names: of the points, one for each seed; value: their mean; deviation: over the seeds, NaN where there is one."""

    names: tuple[str, ...]
    value: float
    deviation: float

    def __str__(self) -> str:
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:.2f} over {len(self.names)} seeds"
        return f"{self.value:.2f}{spread}"


class Results:
    """The rows of the points that have ended, on disk after each of them. metric: what the points are compared by."""

    def __init__(self, folder: Path, metric: str):
        self._folder, self._metric = folder, metric
        self._ended: dict[str, Ended] = {}
        self._rows: dict[str, dict[str, Any]] = {}

    def add(self, ended: Ended) -> float | None:
        """Keeps the row of a point and gives its value. ConfigError where it is finished and has none."""
        name = ended.point.name
        self._ended[name], self._rows[name] = ended, row(ended, self._folder)
        self._write()
        value = self._rows[name].get(self._metric)
        if ended.status == "done" and value is None:
            numbers = [key for key, number in self._rows[name].items() if isinstance(number, float) and key in METRICS]
            raise ConfigError(
                f"--metric={self._metric}: {self._folder / name} is finished and has none; it has {', '.join(numbers) or 'no evaluation'}: "
                "the data must have rows for validation, see data.validation_rows and data.split_column"
            )
        return value

    def rows(self) -> list[dict[str, Any]]:
        """A row for each point that has ended, by name."""
        return [self._rows[name] for name in sorted(self._rows)]

    def point(self, name: str) -> Point:
        """The point of a row."""
        return self._ended[name].point

    def fields(self) -> list[str]:
        """The fields that the points change."""
        return list(dict.fromkeys(field for ended in self._ended.values() for field in ended.point.labels))

    def best(self) -> Best | None:
        """The overrides with the highest mean over their seeds; None where no point is finished with a number."""
        groups: dict[str, list[str]] = {}
        for name, ended in sorted(self._ended.items()):
            if ended.status == "done":
                others = {field: value for field, value in ended.point.labels.items() if field != SEED}
                groups.setdefault(json.dumps(others, sort_keys=True, default=str), []).append(name)
        found = []
        for names in groups.values():
            values = [float(self._rows[name][self._metric]) for name in names]
            found.append(Best(tuple(names), statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan))
        return max((one for one in found if math.isfinite(one.value)), key=lambda best: best.value, default=None)

    def _write(self) -> None:
        path = self._folder / "sweep.parquet"
        _frame(self.rows()).to_parquet(path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)  # a reader sees the old file or the whole new one


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """As a table; a column that holds values of several kinds holds their texts."""
    frame = pd.DataFrame(rows)
    for column in frame:
        kinds = {type(row.get(column)) for row in rows} - {type(None)}
        if len(kinds) > 1 and not kinds <= {int, float}:
            frame[column] = [str(row.get(column)) for row in rows]
    return frame


def write_best(path: Path, config: Config, title: str) -> Path:
    """Writes a config as a file with get_config()."""
    values = dict.fromkeys(name.partition("[")[0] for name in changed_fields(Config(), config))
    lines = "\n".join(f"    config.{name} = {_value(config, name)!r}" for name in values)
    path.write_text(CONFIG_FILE.format(title=_on_one_line(title), path=_on_one_line(path), lines=lines))
    return path


def _on_one_line(value: object) -> str:
    return " ".join(str(value).split())


def _value(config: Config, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    groups = isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value))
    return tuple(map(to_dict, value)) if groups else value
