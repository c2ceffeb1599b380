"""What a sweep shows: a bar for itself and for each run, the time left, a line for each point that has ended, the table at the end."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import rich.progress
from rich.console import Console
from rich.table import Table

from bacl_jax.train.goodput import clock
from launch.point_runs import Ended, Planned, Records
from launch.points import config_of

LONGEST_TABLE = 30  # rows


class Display:
    """A context. evaluation: name in metrics.jsonl of the number that is shown for each run."""

    def __init__(self, total: int, evaluation: str):
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        )
        self._evaluation = evaluation
        self._progress = rich.progress.Progress(*columns, refresh_per_second=2)
        self._points = self._progress.add_task("points", total=total)
        self._total, self._ended, self._worked, self._began = total, 0, 0.0, time.monotonic()
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._shares: dict[str, tuple[float, float]] = {}  # of each point that runs: its share that was done at first, and is now

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def watched(self, planned: Planned) -> Planned:
        """The same, shown while it runs."""
        name, steps = planned.point.name, config_of(planned.point).train.steps

        def watch(records: Records) -> bool:
            self._update(name, steps, records)
            return planned.watch(records)

        return dataclasses.replace(planned, watch=watch)

    def _update(self, name: str, steps: int, records: Records) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=steps)
            before = records[-1]["step"] / steps if records else 0.0
            self._shares[name] = before, before
        if records:
            self._shares[name] = (self._shares[name][0], records[-1]["step"] / steps)
            self._progress.update(self._tasks[name], completed=records[-1]["step"])
        if values := [record[self._evaluation] for record in records if self._evaluation in record]:
            self._progress.update(self._tasks[name], description=f"{name}  {values[-1]:.1f}")
        self._progress.update(self._points, description=f"points, {self._left()}")

    def ended(self, ended: Ended, value: float | None) -> None:
        """A line for a point; value: what it is compared by."""
        before, _ = self._shares.pop(ended.point.name, (0.0, 0.0))
        self._ended += 1
        self._worked += (1 - before) * ended.ran
        if ended.point.name in self._tasks:
            self._progress.remove_task(self._tasks.pop(ended.point.name))
        self._progress.update(self._points, completed=self._ended, description=f"points, {self._left()}")
        said = ended.reason or ("" if value is None else f"{value:.1f}")
        again = "" if ended.ran else " before"
        self._progress.console.print(
            f"{self._ended}/{self._total}  {ended.point.name}  {ended.status}{again}  {said}  {self._left()}", highlight=False, markup=False
        )

    def _left(self) -> str:
        """The time that is left, by what the points that were run here have taken."""
        running = list(self._shares.values())
        worked = self._worked + sum(now - before for before, now in running)
        if self._ended >= self._total or not worked:
            return "" if self._ended >= self._total else "time left: ?"
        rest = self._total - self._ended - sum(now for _, now in running)
        return f"{clock((time.monotonic() - self._began) * rest / worked)} left"


def print_table(rows: Sequence[Mapping[str, Any]], fields: Sequence[str], metric: str) -> None:
    """The points, the best first."""
    console = Console()
    console = console if console.is_terminal else Console(file=console.file, width=120)
    table = Table(title=f"{len(rows)} points by {metric} on validation", title_justify="left")
    for column in (*fields, metric, "status"):
        table.add_column(column, justify="left" if column == "status" else "right", overflow="fold")
    worst = -math.inf
    ranked = sorted(rows, key=lambda row: (row["status"] == "done", worst if row.get(metric) is None else row[metric]), reverse=True)
    for row in ranked[:LONGEST_TABLE]:
        value = row.get(metric)
        said = f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]
        table.add_row(*(str(row.get(field, "")) for field in fields), "-" if value is None else f"{value:.2f}", said)
    console.print(table)
    if len(rows) > LONGEST_TABLE:
        console.print(f"and {len(rows) - LONGEST_TABLE} more in sweep.parquet")
