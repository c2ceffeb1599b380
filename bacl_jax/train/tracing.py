"""Traces of steps by jax.profiler, in DIR/profile: steps that the config names, and the next ones after SIGUSR1.

xprof and TensorBoard's profile plug-in read the folder; so does `jax.profiler.ProfileData`. A step is the event `train`, and what the loop
does beside it is named as in `bacl_jax/train/goodput.py`. Python's own calls are not traced: they would slow down what is looked at.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from bacl_jax.config_watch import WatchConfig
from bacl_jax.train.goodput import Goodput


class Asked:
    """Context in which SIGUSR1 asks for a trace, in place of ending the process. Outside the main thread it does nothing."""

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> "Asked":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def taken(self) -> bool:
        """Whether it was asked since the last time that this was called."""
        asked, self._asked = self._asked, False
        return asked


class Tracer:
    """Traces `config.trace_steps` steps from `config.trace_from` on (process 0), and whenever `asked` says so (the process that was asked).

    A trace is one session, steps_<first>_to_<last>, of a further process with its number.
    """

    def __init__(self, config: WatchConfig, workdir: str | os.PathLike[str], asked: Asked, account: Goodput):
        self._first = config.trace_from if jax.process_index() == 0 else None
        self._steps, self._folder, self._asked, self._account = config.trace_steps, Path(workdir) / "profile", asked, account
        self._last: int | None = None  # step of the trace that runs

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the call that queues a step; starts a trace where one is due."""
        if self._last is None and (self._asked.taken() or number == self._first):
            with self._account.spent("tracing"):
                self._start(number)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def done(self, number: int, state: Any) -> None:
        """After a step was queued; ends the trace with its last step, for whose `state` it waits."""
        if self._last is not None and number >= self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends a trace that runs, and writes it."""
        if self._last is None:
            return
        with self._account.spent("tracing"):
            jax.profiler.stop_trace()
        self._last = None
        print(f"traced: {self._session}")

    def _start(self, number: int) -> None:
        self._last = number + self._steps - 1
        process = f"_process_{jax.process_index()}" if jax.process_index() else ""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        options.session_id = f"steps_{number}_to_{self._last}{process}"
        self._session = self._folder / "plugins" / "profile" / options.session_id
        jax.profiler.start_trace(self._folder, profiler_options=options)
