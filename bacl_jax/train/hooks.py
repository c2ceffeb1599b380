"""What reaches a running loop from outside: signals, the clock of the saves."""

import ctypes
import os
import signal
import time
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


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
