"""Runs points in processes of their own, some at a time: each is watched, may be ended early, and is tried once more where it fails.

The processes share a cache of compiled steps, in the folder of the runs: what differs in the seed alone is compiled once. None of them
outlives this process, however it ends, and the same command goes on with what is not finished.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import rich.progress

from bacl_jax.train.workdir import check_workdir
from launch import supervise
from launch.points import Point, command, config_of, is_finished, result

TRIES = 2
POLL_SECONDS = 0.5
FAILED, PRUNED = "failed", "pruned"  # files in the folder of a point: why it failed; that it was ended early and is not to go on
Records = Sequence[Mapping[str, Any]]  # lines of metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Planned:
    """A point to be run. watch: of the lines that its log has got, whether to end it early. told: how it ended, before it is passed on."""

    point: Point
    watch: Callable[[Records], bool] = lambda records: False
    told: Callable[["Ended"], None] = lambda ended: None


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a point ended. ran: whether a process was started for it. reason: the last line of its output, where it failed."""

    point: Point
    status: Literal["done", "failed", "pruned", "stopped"]
    ran: bool = True
    reason: str = ""


class Log:
    """The lines of a metrics.jsonl that is written meanwhile, and cut back where its run resumes."""

    def __init__(self, path: Path):
        self._path, self._file_number, self._read = path, -1, 0

    def new(self) -> list[dict[str, Any]]:
        """The whole lines since the last call; all of them, where another file has taken the place of the old one."""
        try:
            with self._path.open("rb") as file:
                number = os.fstat(file.fileno()).st_ino
                self._read = self._read if number == self._file_number else 0
                self._file_number = number
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return []
        self._read += len(whole) + 1 if whole else 0
        return [json.loads(line) for line in whole.splitlines()]


def left(point: Point, folder: Path) -> Ended | None:
    """How a point ended, as its folder tells; None where it is not finished."""
    workdir = folder / point.name
    if is_finished(point, workdir):
        return Ended(point, "done", ran=False)
    if (workdir / PRUNED).exists():
        return Ended(point, "pruned", ran=False)
    if (workdir / FAILED).exists():
        return Ended(point, "failed", ran=False, reason=(workdir / FAILED).read_text().strip())
    return None


def places() -> int:
    """Runs that this machine has room for at a time: its GPUs, else the cores that this process may use."""
    return len(_gpus()) or len(os.sched_getaffinity(0))


def default_workers() -> int:
    """One run a GPU, or two cores a run."""
    return len(_gpus()) or max(1, places() // 2)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them."""
    count, given = supervise.gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if count and given else [str(number) for number in range(count)]


class Workers:
    """`count` places for runs whose folders are in `folder`, each with a share of the cores and of the GPUs, where there are any."""

    def __init__(self, folder: Path, count: int):
        cores, gpus = sorted(os.sched_getaffinity(0)), _gpus()
        self._folder, self._count = folder, count
        self._shares: queue.Queue[tuple[list[int], dict[str, str]]] = queue.Queue()
        for worker in range(count):
            cache = {"JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").resolve())} | os.environ
            seen = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[worker::count] or gpus)} if gpus else {}
            self._shares.put((cores[worker::count] or cores, cache | seen | {supervise.LAUNCHED: "1"}))
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stops = threading.RLock(), 0  # a signal may come while its own thread holds the lock

    @property
    def stopped(self) -> bool:
        return self._stops > 0

    def stop(self) -> None:
        """Starts nothing more and has the runs save and leave; a second call kills them."""
        with self._lock:
            self._stops += 1
            for process in self._running:
                process.send_signal(signal.SIGTERM if self._stops == 1 else signal.SIGKILL)

    def run(self, plan: Iterable[Planned]) -> Generator[Ended, None, None]:
        """Each point of the plan as it ends; the next one is asked for when a place is free. SIGTERM and Ctrl-C call `stop`.

        Where the caller leaves early the runs are stopped, too. Cost: the sum of the runs over `count`.
        """
        waiting: dict[concurrent.futures.Future[Ended], Planned] = {}
        points = iter(plan)
        with supervise.handled(lambda number, frame: self.stop()), concurrent.futures.ThreadPoolExecutor(self._count) as pool:
            try:
                while True:
                    while len(waiting) < self._count and not self.stopped and (planned := next(points, None)) is not None:
                        waiting[pool.submit(self._run, planned)] = planned
                    if not waiting:
                        return
                    for future in concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED).done:
                        ended = future.result()
                        waiting.pop(future).told(ended)
                        yield ended
            finally:
                if waiting:
                    self.stop()

    def _run(self, planned: Planned) -> Ended:
        point, workdir = planned.point, self._folder / planned.point.name
        if (before := left(point, self._folder)) and before.status != "failed":
            return before
        (workdir / FAILED).unlink(missing_ok=True)
        log, code = Log(workdir / "metrics.jsonl"), 0
        if planned.watch(log.new()):  # it was to be ended when this process was killed
            return self._prune(point, ran=False)
        for _ in range(TRIES):
            if self.stopped:
                return Ended(point, "stopped")
            code, pruned = self._attempt(point, lambda: planned.watch(log.new()))
            if is_finished(point, workdir):
                return Ended(point, "done")
            if pruned and not self.stopped:
                return self._prune(point)
        if self.stopped:
            return Ended(point, "stopped")
        reason = _reason(workdir / "output.txt", code)
        (workdir / FAILED).write_text(f"{reason}\n")
        return Ended(point, "failed", reason=reason)

    def _prune(self, point: Point, *, ran: bool = True) -> Ended:
        (self._folder / point.name / PRUNED).touch()
        return Ended(point, "pruned", ran=ran)

    def _attempt(self, point: Point, to_be_pruned: Callable[[], bool]) -> tuple[int, bool]:
        """Exit code of one process of the point, and whether it was ended early."""
        workdir, pruned = self._folder / point.name, False
        workdir.mkdir(parents=True, exist_ok=True)
        cores, environment = share = self._shares.get()
        try:
            with (workdir / "output.txt").open("a") as output, self._started(point, workdir, output, environment) as process:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(process.pid, cores)
                while (code := _wait(process)) is None:
                    if not pruned and to_be_pruned():
                        pruned = True
                        process.terminate()
                return code, pruned
        finally:
            self._shares.put(share)

    @contextlib.contextmanager
    def _started(self, point: Point, workdir: Path, output: TextIO, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
        """A process that `stop` reaches. Its standard input ends with this process, however that ends: supervise.end_with_launcher."""
        with self._lock:
            process = subprocess.Popen(
                command(point, workdir),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            self._running.add(process)
            if self.stopped:
                process.terminate()
        try:
            with process:
                yield process
        finally:
            with self._lock:
                self._running.discard(process)


def _wait(process: "subprocess.Popen[bytes]") -> int | None:
    """The exit code; None where the process still runs after POLL_SECONDS."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(POLL_SECONDS)
    return None


def _reason(output: Path, code: int) -> str:
    """Why a point failed: by which signal, or the last line that it has written, at most 300 letters."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix(supervise.ERROR)[:300] if lines else f"ended with exit code {code}"


def run(points: Iterable[Point], folder: Path, *, workers: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """Runs what is not finished, `workers` at a time; calls `keep` with the row of each that is.

    A point that fails twice is named on stderr and left out. ConfigError, before anything runs, where the folder of a point belongs to
    another config.
    """
    points = list(points)
    for point in points:
        check_workdir(folder / point.name, config_of(point))
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns) as shown:
        task = shown.add_task("runs", total=len(points))
        for ended in Workers(folder, workers).run(map(Planned, points)):
            shown.advance(task)
            if ended.status == "done" and (row := result(ended.point, folder / ended.point.name)) is not None:
                keep(row)
            elif ended.status == "failed":
                print(f"failed twice: {ended.point.name}: {ended.reason}, see {folder / ended.point.name / 'output.txt'}", file=sys.stderr)
