"""Where a run is, for who looks at it: two live lines on a terminal, else a plain line every ten seconds."""

import sys
import time
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from bacl_jax.train.goodput import clock

WAIT_WORTH_A_WORD = 1.0  # percent


@runtime_checkable
class Display(Protocol):
    """Shows where a run is."""

    def update(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """values: `loss` of the step and, where it was evaluated, the results; speed: see bacl_jax/train/speed.py."""
        ...

    def close(self) -> None: ...


def make_display(start_step: int, steps: int, headline: str | None, best: float | None = None) -> Display:
    """Silent on other processes than 0.

    headline: name of the evaluation result shown, <split>/<task>/<metric>, in percent; best: its value from before a resume.
    """
    shown = _Shown(start_step, steps, headline, best)
    if jax.process_index() != 0:
        return _Silent()
    return _Live(shown) if sys.stdout.isatty() else _Lines(shown)


class _Shown:
    """The numbers of the display, in words."""

    def __init__(self, start_step: int, steps: int, headline: str | None, result: float | None):
        self.step, self.steps = start_step, steps
        self._headline, self._result = headline, result
        metric = (headline or "").rpartition("/")[2]
        self._name = "R@1" if metric == "i2t_R@1" else metric
        self._loss = float("nan")
        self._first: tuple[int, float] | None = None  # (step, time) after the first step, whose time is compilation
        self._rate = 0.0  # steps a second, all that comes between them included
        self._speed: Mapping[str, float] = {}

    def update(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        self.step, self._loss, self._speed = step, values["loss"], speed
        self._result = values.get(self._headline, self._result) if self._headline else None
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        elif step > self._first[0]:
            self._rate = (step - self._first[0]) / (now - self._first[1])

    def learning(self) -> str:
        return f"loss {self._loss:.3f}" + ("" if self._result is None else f"  {self._name} {self._result:.1f} %")

    def pace(self) -> str:
        return f"{self._speed.get('pairs_per_second', 0):,.0f} pairs/s"

    def left(self) -> str:
        if not self._rate:
            return "time left: ?"
        return f"{clock((self.steps - self.step) / self._rate).removeprefix('0:').removeprefix('0')} left"

    def use(self, *, all_of_it: bool) -> list[str]:
        """What the machine makes of its time: all that is known, or what a plain line has room for."""
        speed, parts = self._speed, []
        if "mfu" in speed:
            parts.append(f"MFU {speed['mfu']:.1f} %")
        if all_of_it or speed.get("data_wait", 0) >= WAIT_WORTH_A_WORD:
            parts.append(f"data wait {speed.get('data_wait', 0):.0f} %")
        if all_of_it and "memory_gib" in speed:
            parts.append(f"memory {speed['memory_gib']:.1f} GiB")
        return parts


class _Silent:
    def update(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    SECONDS = 10.0

    def __init__(self, shown: _Shown):
        self._shown, self._last = shown, -np.inf

    def update(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        shown = self._shown
        shown.update(step, values, speed)
        if time.monotonic() - self._last >= self.SECONDS or step == shown.steps:
            self._last = time.monotonic()
            parts = (f"step {step}/{shown.steps}", shown.learning(), shown.pace(), shown.left(), *shown.use(all_of_it=False))
            print("  ".join(parts), flush=True)

    def close(self) -> None:
        pass


class _Live:
    def __init__(self, shown: _Shown):
        self._shown, self._below = shown, Text("compiling the first step", style="dim")
        console = Console()
        columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(24), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, auto_refresh=False)
        self._task = self._progress.add_task("", total=shown.steps, completed=shown.step)
        self._live = Live(Group(self._progress, self._below), console=console, refresh_per_second=4)
        self._live.start()

    def update(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        shown = self._shown
        shown.update(step, values, speed)
        self._progress.update(self._task, completed=step, description=f"{shown.learning()}  {shown.left()}")
        self._below.plain = "  ".join([shown.pace(), *shown.use(all_of_it=True)])

    def close(self) -> None:
        self._live.stop()
