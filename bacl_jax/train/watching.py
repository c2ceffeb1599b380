"""All that watches one process of a run: the account of its time, the log with its trackers, the display, the tracer, the warnings."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bacl_jax.config import Config
from bacl_jax.data.stages import Stages
from bacl_jax.train import goodput
from bacl_jax.train.bottleneck import Bottleneck
from bacl_jax.train.checkpoint import Position
from bacl_jax.train.display import make_display
from bacl_jax.train.goodput import Goodput
from bacl_jax.train.metrics import MetricLog
from bacl_jax.train.speed import Speed
from bacl_jax.train.tracing import Asked, Tracer
from bacl_jax.train.trackers import Trackers


class Watching:
    """Context of one process's part of a run, from its checkpoint on. None of it changes a number of the run.

    account: begun before the checkpoint was read. headline: of the display. statistics: of the data before a step. devices: of the mesh.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        position: Position,
        *,
        account: Goodput,
        headline: str | None,
        statistics: Callable[[int], Mapping[str, float]],
        stages: Stages,
        asked: Asked,
        devices: Sequence[Any],
    ):
        train, self._begun = config.train, position.step < config.train.steps
        self.account = account
        if self._begun:  # one that has nothing to do adds nothing to the account
            account.resume(position.step, position.saved_by, position.spent)
        self.speed = Speed(account, train.batch_size, devices)
        self.tracer = Tracer(config.watch, workdir, asked, account)
        self._bottleneck = Bottleneck(config.data, stages)
        self._display = make_display(position.step, train.steps, headline, position.best_value)
        self.log = MetricLog(
            workdir,
            log_every=train.log_every,
            halt_after_nonfinite=train.halt_after_nonfinite,
            batch_size=train.batch_size,
            trackers=Trackers(config, workdir, position.step),
            start_step=position.step,
            wall_seconds=position.wall_seconds,
            show=lambda step, values: self._display.update(step, values, self.speed.update(step)),
            statistics=statistics,
            watched=self._numbers,
        )

    def stepped(self, step: int, metrics: Mapping[str, Any], *, waited: float, began: float) -> None:
        """Takes the metrics of the step just queued; waited: seconds for its batch; began: when the batch was there (perf_counter)."""
        self.account.step = step
        self.log.waited_for_data(waited)
        self.log.push(step, metrics)
        seconds = time.perf_counter() - began
        self.log.stepped(seconds)
        self._bottleneck.took(step, waited=waited, stepped=seconds)

    def _numbers(self) -> dict[str, float]:
        """For trackers: rates of the newest steps, and the percentage of the time of all starts that went into steps."""
        stayed = goodput.shares(goodput.totals(self.account.starts()))["steps"]
        return {f"speed/{name}": value for name, value in self.speed.latest.items()} | {"speed/goodput": 100 * stayed}

    def __enter__(self) -> "Watching":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.log.close)  # last: a tracker may take its time
            stack.callback(self._end, clean=kind is None)
            stack.callback(self._display.close)
            stack.callback(self.tracer.close)

    def _end(self, *, clean: bool) -> None:
        self.account.close(clean=clean)
        if clean and self._begun:
            print(goodput.summary(self.account.starts()))
