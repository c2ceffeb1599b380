"""The record of a run: DIR/metrics.jsonl, one object a logged step, and the same numbers for its trackers.

Metrics are read from the device one step late, so that the next step is already queued when the host waits, and in one piece.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

import jax
import jax.numpy as jnp
import numpy as np

from bacl_jax.errors import NonFiniteError
from bacl_jax.train.services import Look, Record
from bacl_jax.train.trackers import Trackers

Shown = Callable[[int, Mapping[str, float]], None]  # called with (step, its loss and evaluation results)


@jax.jit
def packed(metrics: Mapping[str, jax.Array]) -> jax.Array:
    """All metrics as one vector, float32, in the order of their names: one fetch from the device."""
    return jnp.stack([jnp.asarray(metrics[name], jnp.float32) for name in sorted(metrics)])


def cut_back(path: Path, step: int) -> None:
    """Drops the lines of metrics.jsonl after `step` and a last line that was not written to its end."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(errors="replace").splitlines() if _step_of(line) <= step]
    unfinished = path.with_suffix(".jsonl.tmp")
    unfinished.write_text("".join(f"{line}\n" for line in kept))
    unfinished.replace(path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # not written to its end, or not ours
        return math.inf


class MetricLog:
    """Writes the metrics of steps; only process 0 does.

    trackers: get the numbers of each line, and those of `watched`, which are for them alone.
    statistics: of the data before a step, for its line.
    start_step, wall_seconds: of the checkpoint that the run goes on from; what the files hold beyond it is cut.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        log_every: int,
        halt_after_nonfinite: int,
        batch_size: int,
        trackers: Trackers,
        start_step: int = 0,
        wall_seconds: float = 0.0,
        show: Shown = lambda step, values: None,
        statistics: Callable[[int], Mapping[str, float]] = lambda step: {},
        watched: Callable[[], Mapping[str, float]] = dict,
    ):
        self._log_every, self._halt_after, self._batch_size = log_every, halt_after_nonfinite, batch_size
        self._trackers, self._statistics, self._watched = trackers, statistics, watched
        self._show, self._wall_before, self._started = show, wall_seconds, time.perf_counter()
        self._pending: tuple[int, list[str], jax.Array] | None = None
        self._data_wait = self._stepped = 0.0
        self._file: TextIO | None = None
        if jax.process_index() == 0:
            path = Path(workdir) / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            cut_back(path, start_step)
            self._file = path.open("a")

    @property
    def wall_seconds(self) -> float:
        """Seconds of training up to now, those before a resume included."""
        return self._wall_before + time.perf_counter() - self._started

    def waited_for_data(self, seconds: float) -> None:
        """Adds to the data wait that the next line reports."""
        self._data_wait += seconds

    def stepped(self, seconds: float) -> None:
        """Adds to the time of steps, without the wait for their data, that the next line reports."""
        self._stepped += seconds

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of the step just queued and handles those of the step before. Raises NonFiniteError."""
        self.flush()
        self._pending = (step, sorted(metrics), packed(dict(metrics)))

    def flush(self, evaluation: Mapping[str, float] | None = None, step: int | None = None, look: Look | None = None) -> None:
        """Handles the metrics of the last step now, on one line with the results of an evaluation at `step`, if there are any.

        look: what it has for trackers beside them.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            if evaluation is not None and step is not None:
                self._write(step, evaluation, look)
            return
        step, names, vector = pending
        logged = evaluation is not None or step % self._log_every == 0
        values = dict(zip(names, np.asarray(vector).tolist(), strict=True))
        self._show(step, {"loss": values["loss"], **(evaluation or {})})
        if logged:
            self._write(step, values | dict(evaluation or {}), look)
        if values["nonfinite"] >= self._halt_after:
            self.sync()
            raise NonFiniteError(
                f"halted at step {step}: loss or gradients were not finite in {int(values['nonfinite'])} steps in a row "
                f"(train.halt_after_nonfinite = {self._halt_after}). Look at the data: the same command goes on from the last checkpoint. "
                "Or lower optim.lr or optim.clip_norm, which needs a new --workdir"
            )

    def _write(self, step: int, values: Mapping[str, float], look: Look | None) -> None:
        if self._file is None:
            return
        line = {
            "step": step,
            "samples_seen": step * self._batch_size,
            "wall_seconds": self.wall_seconds,
            "data_wait_seconds": self._data_wait,
            "step_seconds": self._stepped,
        }
        self._data_wait = self._stepped = 0.0
        values = {**values, **self._statistics(step)}
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}  # NaN is no JSON
        self._file.write(json.dumps(line | numbers, allow_nan=False) + "\n")
        self._file.flush()
        look = look or Look()
        shown = {**values, **self._watched(), **look.numbers}
        self._trackers.write(Record(step=step, seconds=time.time(), numbers=shown, pictures=look.pictures, histograms=look.histograms))

    def sync(self) -> None:
        """Everything written so far is on disk: before a checkpoint, so that no line of a restored step is missing."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._trackers.flush()

    def close(self) -> None:
        if self._file is not None:
            self.sync()
            self._file.close()
            self._trackers.close()
