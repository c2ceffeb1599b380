"""What looks at a running loop from outside: signals, the clock of the saves, the progress display."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import rich.progress
from jax.experimental import multihost_utils
from rich.console import Console


class Preemption:
    """Context in which SIGTERM and Ctrl-C only set a flag that the loop reads between steps; a second Ctrl-C interrupts at once.

    With several processes (`jax.distributed`) SIGTERM is left to JAX's coordination service, which has all of them stop at one step
    whichever got it; Ctrl-C is passed on as SIGTERM.
    """

    def __init__(self) -> None:
        self._asked = self._at_once = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        for number in (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT):
            self._take(number)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _take(self, number: int) -> None:
        before = signal.signal(number, self._handle)
        self._handlers.setdefault(number, signal.SIG_DFL if before is None else before)  # None: JAX's, which Python cannot give back

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._at_once or (number == signal.SIGINT and self._asked):
            raise KeyboardInterrupt
        self._asked = True
        if jax.process_count() > 1 and number == signal.SIGINT:
            os.kill(os.getpid(), signal.SIGTERM)

    def interrupt(self) -> None:
        """From here on a signal raises KeyboardInterrupt at once; so does this call if one came before.

        With several processes they have parted by now (a SIGTERM since the last step is not known of).
        """
        self._at_once = True
        self._take(signal.SIGTERM)
        if self._asked:
            raise KeyboardInterrupt

    def reached(self, step: int) -> bool:
        """Whether to save and leave before `step + 1`; every process must ask at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked


class SaveClock:
    """Whether `minutes` have passed since the last save; process 0 decides for all. None: never."""

    def __init__(self, minutes: float | None):
        self._minutes, self._last = minutes, time.monotonic()

    def due(self) -> bool:
        if self._minutes is None:
            return False
        late = time.monotonic() - self._last >= 60 * self._minutes
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(late))) if jax.process_count() > 1 else late

    def reset(self) -> None:
        self._last = time.monotonic()


def return_freed_memory() -> None:
    """Gives back to the system what compiling a step has freed: XLA for CPUs leaves some 500 MiB of it with glibc.

    Other C libraries do so by themselves, or not at all.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@runtime_checkable
class Progress(Protocol):
    """Shows where a run is."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """values: `loss` of the step and, where it was evaluated, the results."""
        ...

    def close(self) -> None: ...


def make_progress(start_step: int, steps: int, batch_size: int, headline: str | None, best: float | None = None) -> Progress:
    """A bar on a terminal, else a plain line every ten seconds; silent on other processes than 0.

    headline: name of the evaluation result shown, <split>/<task>/<metric>, in percent; best: its value from before a resume.
    """
    shown = _Shown(start_step, steps, batch_size, headline, best)
    if jax.process_index() != 0:
        return _Silent()
    return _Bar(shown) if sys.stdout.isatty() else _Lines(shown)


class _Shown:
    """The numbers of the display."""

    def __init__(self, start_step: int, steps: int, batch_size: int, headline: str | None, result: float | None):
        self.step, self.steps, self.batch_size = start_step, steps, batch_size
        self._headline, self._result = headline, result
        metric = (headline or "").rpartition("/")[2]
        self._name = "R@1" if metric == "i2t_R@1" else metric
        self._loss = float("nan")
        self._first: tuple[int, float] | None = None  # (step, time) after the first step, whose time is compilation
        self._paused = 0.0
        self._rate = 0.0

    def update(self, step: int, values: Mapping[str, float]) -> None:
        self.step, self._loss = step, values["loss"]
        self._result = values.get(self._headline, self._result) if self._headline else None
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        elif step > self._first[0]:
            self._rate = (step - self._first[0]) / (now - self._first[1])

    def __str__(self) -> str:
        result = "" if self._result is None else f"  {self._name} {self._result:.1f} %"
        return f"loss {self._loss:.3f}{result}  {self._rate * self.batch_size:,.0f} pairs/s  {self._left()}"

    def _left(self) -> str:
        if not self._rate:
            return "time left: ?"
        seconds = round((self.steps - self.step) / self._rate)
        hours, rest = divmod(seconds, 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d} left" if hours else f"{rest // 60}:{rest % 60:02d} left"


class _Silent:
    def update(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    SECONDS = 10.0

    def __init__(self, shown: _Shown):
        self._shown, self._last = shown, -np.inf

    def update(self, step: int, values: Mapping[str, float]) -> None:
        self._shown.update(step, values)
        if time.monotonic() - self._last >= self.SECONDS or step == self._shown.steps:
            self._last = time.monotonic()
            print(f"step {step}/{self._shown.steps}  {self._shown}", flush=True)

    def close(self) -> None:
        pass


class _Bar:
    def __init__(self, shown: _Shown):
        self._shown = shown
        columns = (
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.description}"),
        )
        self._progress = rich.progress.Progress(*columns, console=Console(), refresh_per_second=4)
        self._progress.start()
        self._task = self._progress.add_task("compiling the first step", total=shown.steps, completed=shown.step)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        self._shown.update(step, values)
        self._progress.update(self._task, completed=step, description=str(self._shown))

    def close(self) -> None:
        self._progress.stop()
