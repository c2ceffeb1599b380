"""What a run's metrics go to beside metrics.jsonl: TensorBoard, and services that other machines run (bacl_jax/train/services.py).

A tracker gets one record a logged step, and each step once: a run that was resumed goes on in the tracker's own run, after the last step
that is there (a service that cannot tell may get the last seconds before a kill twice). A service is written to by a thread of its own, so
that one which is slow or gone holds up no step. What it could not be given is counted, and said at the end.
"""

import contextlib
import importlib.util
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from bacl_jax.config import Config, ConfigError
from bacl_jax.train import services
from bacl_jax.train.services import Record, Service

log = logging.getLogger("bacl_jax")

SERVICES: dict[str, Callable[[Config, Path], Service]] = {"wandb": services.WeightsAndBiases, "mlflow": services.MLflow}
NOT_METRICS = {"step", "samples_seen", "wall_seconds", "data_wait_seconds", "step_seconds"}  # of a line of metrics.jsonl
WAITING = 1000  # records that wait for a service; of more the newest are lost
TRIES = 5  # of a record, before the next one is tried
PAUSE = 60.0  # the longest between two tries, seconds
QUIET = 600.0  # seconds between two warnings about a service
LEAVE = 40.0  # seconds that the end of a run waits for a service


def check(config: Config) -> None:
    """ConfigError where a tracker's package is not installed, or where MLflow's server is named nowhere."""
    for name in config.watch.trackers:
        if name in SERVICES and importlib.util.find_spec(name) is None:
            rest = tuple(one for one in config.watch.trackers if one != name)
            raise ConfigError(
                f"config.watch.trackers = {config.watch.trackers!r}: the package {name} is not installed; "
                f'pip install -r requirements-trackers.txt, or leave it out with --config.watch.trackers="{rest!r}"'
            )
    if "mlflow" in config.watch.trackers and services.mlflow_uri(config) is None:
        raise ConfigError(
            "config.watch.mlflow_uri = None: must name MLflow's server where watch.trackers holds mlflow; set it with "
            "--config.watch.mlflow_uri=http://host:5000, or set the variable MLFLOW_TRACKING_URI"
        )


class Trackers:
    """Those of a config; only process 0 has any. start_step: of the checkpoint that the run goes on from."""

    def __init__(self, config: Config, workdir: Path, start_step: int = 0):
        names = dict.fromkeys(config.watch.trackers if jax.process_index() == 0 else ())
        self._board = Board(workdir, start_step) if "tensorboard" in names else None
        self._behind = [Behind(name, SERVICES[name](config, workdir), workdir, start_step) for name in names if name in SERVICES]

    def __bool__(self) -> bool:
        return bool(self._board or self._behind)

    def write(self, record: Record) -> None:
        if self._board:
            self._board.write(record)
        for one in self._behind:
            one.write(record)

    def flush(self) -> None:
        """What TensorBoard was given is in its file; a service keeps its own time."""
        if self._board:
            self._board.flush()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for one in [self._board, *self._behind]:
                if one:
                    stack.callback(one.close)


class Board:
    """TensorBoard's event files, DIR/tensorboard. A reader forgets the steps that an earlier process wrote after `start_step`."""

    def __init__(self, workdir: Path, start_step: int):
        self._writer: Any = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, record: Record) -> None:
        for name, value in record.numbers.items():
            self._writer.add_scalar(name, value, record.step, record.seconds)
        for name, picture in record.pictures.items():
            self._writer.add_image(name, picture, record.step, record.seconds, dataformats="HWC")
        for name, values in record.histograms.items():
            self._writer.add_histogram(name, values, record.step, bins="auto", walltime=record.seconds)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Behind:
    """A service and the thread that writes to it. DIR/trackers/<name>.json: the service's own id of the run, and the last step it has.

    What it lacks of the steps up to `start_step`, because an earlier process was killed or had no such tracker, it gets from metrics.jsonl.
    """

    def __init__(self, name: str, service: Service, workdir: Path, start_step: int = 0):
        self._name, self._service, self._file = name, service, workdir / "trackers" / f"{name}.json"
        self._log, self._start_step = workdir / "metrics.jsonl", start_step
        self._records: queue.Queue[Record | None] = queue.Queue(WAITING)
        self._leaving, self._open = threading.Event(), False
        self._run, self._last = self._remembered()
        self._settled = self._last  # what the service has even if this process ends now
        self._settling: list[tuple[float, int]] = []  # (when, step) of what it was given since
        self._taken = self._given = 0  # records from the run, and those of them that the service has
        self._quiet_until = 0.0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Returns at once."""
        self._taken += 1
        with contextlib.suppress(queue.Full):
            self._records.put_nowait(record)

    def close(self) -> None:
        """Waits for the service, for up to `LEAVE` seconds; says what it was not given."""
        self._leaving.set()
        deadline = time.monotonic() + LEAVE
        with contextlib.suppress(queue.Full):
            self._records.put(None, timeout=LEAVE)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if lost := self._taken - self._given:
            log.warning("%s was not given %d of %d records; metrics.jsonl has all numbers", self._name, lost, self._taken)

    def _work(self) -> None:
        while (record := self._next()) is not None:
            if self._delivered(record):
                self._given += 1
            elif self._leaving.is_set():
                break
        if self._last < self._start_step:  # nothing was logged
            self._tried(self._catch_up)
        if self._open and self._tried(lambda: self._service.close(self._last)):
            self._settled = self._last
            self._remember()

    def _next(self) -> Record | None:
        """The next record, None at the end. Meanwhile what has settled is remembered."""
        while True:
            try:
                return self._records.get(timeout=self._service.settles if self._settling else None)
            except queue.Empty:
                self._settle()

    def _delivered(self, record: Record) -> bool:
        """Whether the service has it after some tries; where the run is about to end, after one."""
        for number in range(TRIES):
            if self._tried(lambda: self._give(record)):
                return True
            if self._leaving.wait(min(PAUSE, 2.0**number)):
                break
        return False

    def _give(self, record: Record) -> None:
        self._catch_up()
        if record.step > self._last:
            self._write(record)

    def _write(self, record: Record) -> None:
        self._service.write(record)
        self._last = record.step
        self._settling.append((time.monotonic(), record.step))
        self._settle()

    def _settle(self) -> None:
        """Remembers what the service was given long enough ago."""
        until = time.monotonic() - self._service.settles
        if found := [step for when, step in self._settling if when <= until]:
            del self._settling[: len(found)]
            self._settled = found[-1]
            self._remember()

    def _catch_up(self) -> None:
        if not self._open:
            known = self._service.open(self._run, self._remember_run)
            self._last = self._last if known is None else known
            self._open = True
        if self._last < self._start_step:
            for record in owed(self._log, self._last, self._start_step):
                self._write(record)
            self._last = self._start_step

    def _tried(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:  # what a service's client raises is in no contract, and no run may end of it
            if time.monotonic() >= self._quiet_until:
                self._quiet_until = time.monotonic() + QUIET
                what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                behind = self._taken - self._given
                log.warning("%s does not answer; the run goes on, and tries again (%d records behind): %s", self._name, behind, what)
            return False
        return True

    def _remembered(self) -> tuple[str | None, int]:
        try:
            found = json.loads(self._file.read_text())
            return str(found["run"]), int(found["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None, 0

    def _remember_run(self, run: str) -> None:
        self._run = run
        self._remember()

    def _remember(self) -> None:
        self._file.parent.mkdir(exist_ok=True)
        unfinished = self._file.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"run": self._run, "step": self._settled}) + "\n")
        unfinished.replace(self._file)


def owed(path: Path, after: int, up_to: int) -> Iterator[Record]:
    """The lines of a metrics.jsonl of steps in (after, up_to], without what is no number."""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, KeyError, TypeError):  # not written to its end
            continue
        if after < step <= up_to:
            numbers = {name: float(value) for name, value in entry.items() if name not in NOT_METRICS and value is not None}
            yield Record(step=step, seconds=time.time(), numbers=numbers)
