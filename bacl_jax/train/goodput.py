"""Where the time of a run goes, over all its starts: DIR/goodput.jsonl, one object a start.

Every moment of a process belongs to one activity, so that the seconds of a start add up to its time, and the shares of a run to 1:

    steps        the steps, and all that has no name of its own
    data         waiting for a batch
    compilation  of the step and of the search for partners
    evaluation   while training
    checkpoint   copying the state off the devices, and waiting for a save before
    tracing      starting and writing a trace of steps
    start        from the start of the process to the first batch: imports, data, restoring
    lost         what was done after the checkpoint that the next start went on from, and so was done again

What a restart costs is `start` + `lost` + `compilation` of the later starts. A process that is killed is counted up to its last sign of
life, which comes every `BEAT` seconds. The time between two starts belongs to none. The report at the end is no part of training.
"""

import contextlib
import dataclasses
import json
import logging
import os
import threading
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

log = logging.getLogger("bacl_jax")

Activity = Literal["steps", "data", "compilation", "evaluation", "checkpoint", "tracing", "start", "lost"]
ACTIVITIES: tuple[Activity, ...] = typing.get_args(Activity)
BEAT = 5.0  # seconds between two signs of life
FILE = "goodput.jsonl"


@dataclasses.dataclass(frozen=True)
class Start:
    """One process of a run. began, ended: seconds since 1970, the latter of the last sign of life. step: the last one that it did.

    clean: it left by itself after saving, so that nothing of it was lost.
    """

    began: float
    ended: float
    step: int
    clean: bool
    seconds: dict[str, float]

    def cut_back(self, kept: Mapping[str, float]) -> "Start":
        """The same with all that it did after `kept`, seconds by activity, as lost."""
        late = {name: max(0.0, value - kept.get(name, 0.0)) for name, value in self.seconds.items() if name != "lost"}
        seconds = {name: self.seconds[name] - value for name, value in late.items()}
        return dataclasses.replace(self, seconds=seconds | {"lost": self.seconds["lost"] + sum(late.values())})


def read(workdir: str | os.PathLike[str]) -> list[Start]:
    """The starts of a run, in order; lines that are not whole are left out."""
    path = Path(workdir) / FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [start for line in lines if (start := _start(line)) is not None]


def _start(line: str) -> Start | None:
    try:
        entry = json.loads(line)
        seconds = {name: float(entry["seconds"][name]) for name in ACTIVITIES}
        return Start(float(entry["began"]), float(entry["ended"]), int(entry["step"]), bool(entry["clean"]), seconds)
    except (ValueError, KeyError, TypeError):
        return None


def cut_back(starts: Sequence[Start], step: int, saved_by: int, kept: Mapping[str, float]) -> list[Start]:
    """The starts as seen by one that goes on from a checkpoint of `step`, which start number `saved_by` (from 1) wrote after `kept`.

    Later ones did nothing that stayed but to start. saved_by = 0: there is no checkpoint, and none of them did.
    """
    cut = []
    for number, start in enumerate(starts, 1):
        if number > saved_by:
            cut.append(start.cut_back({"start": start.seconds["start"]}))
        elif number == saved_by and not (start.clean and start.step == step):
            cut.append(start.cut_back(kept))
        else:
            cut.append(start)
    return cut


def totals(starts: Sequence[Start]) -> dict[Activity, float]:
    """Seconds by activity over all starts."""
    return {name: sum(start.seconds[name] for start in starts) for name in ACTIVITIES}


def shares(seconds: Mapping[Activity, float]) -> dict[Activity, float]:
    """Of the whole, which is not 0; they sum to 1."""
    whole = sum(seconds.values())
    return {name: value / whole for name, value in seconds.items()}


def summary(starts: Sequence[Start]) -> str:
    """One line: what part of the time went into steps that stayed, and where the rest went."""
    seconds = totals(starts)
    parts = ", ".join(f"{name} {share:.1%}" for name, share in shares(seconds).items() if name != "steps" and share >= 0.0005)
    times = f"{len(starts)} start{'s' if len(starts) > 1 else ''}"
    return f"goodput {shares(seconds)['steps']:.1%} of {clock(sum(seconds.values()))} in {times}" + (f": {parts}" if parts else "")


def clock(seconds: float) -> str:
    """As in 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def process_began() -> float:
    """When this process began, by time.monotonic(). Where the system does not tell, it is now."""
    now = time.monotonic()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):  # no Linux
        return now


class Goodput:
    """The account of this process, kept in the workdir beside those of the starts before; only process 0 writes.

    began: of the process, by time.monotonic(); None: now. The activity at first is `start`.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, began: float | None = None):
        now = time.monotonic()
        self._path = Path(workdir) / FILE if jax.process_index() == 0 else None
        self._since = now if began is None else began
        self._began = time.time() - (now - self._since)
        self._before: list[Start] = []
        self._seconds: dict[Activity, float] = dict.fromkeys(ACTIVITIES, 0.0)
        self._activity: Activity = "start"
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self.step = 0  # the last one done

    def resume(self, step: int, saved_by: int, kept: Mapping[str, float]) -> None:
        """From here on the account is in the file. Of a checkpoint that is gone on from, what `mark` gave; without one 0, 0, {}."""
        self.step, self._before = step, cut_back(read(self._path.parent) if self._path else [], step, saved_by, kept)
        self._thread.start()

    def mark(self) -> tuple[int, dict[str, float]]:
        """What goes into a checkpoint: (number of this start, its seconds by activity so far)."""
        return len(self._before) + 1, {str(name): value for name, value in self.seconds().items()}

    def switch(self, activity: Activity) -> Activity:
        """From now on the time goes to `activity`; the one before."""
        with self._lock:
            before = self._activity
            self._settle()
            self._activity = activity
        return before

    def _settle(self) -> None:
        now = time.monotonic()
        self._seconds[self._activity] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def spent(self, activity: Activity) -> Iterator[None]:
        """The time inside the block goes to `activity`, failures included; named so in a trace."""
        before = self.switch(activity)
        try:
            with jax.profiler.TraceAnnotation(activity):
                yield
        finally:
            self.switch(before)

    def seconds(self) -> dict[Activity, float]:
        """Of this start, up to now."""
        with self._lock:
            self._settle()
            return dict(self._seconds)

    def starts(self, *, clean: bool = False) -> list[Start]:
        """All of the run, this one last."""
        seconds = {str(name): value for name, value in self.seconds().items()}
        return [*self._before, Start(self._began, self._began + sum(seconds.values()), self.step, clean, seconds)]

    def close(self, *, clean: bool) -> None:
        """clean: what was done is saved."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
            self._write(clean=clean)

    def _beat(self) -> None:
        self._write()
        while not self._ended.wait(BEAT):
            self._write()

    def _write(self, *, clean: bool = False) -> None:
        if self._path is None:
            return
        unfinished = self._path.with_suffix(".jsonl.tmp")
        lines: list[dict[str, Any]] = [dataclasses.asdict(start) for start in self.starts(clean=clean)]
        try:
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines))
            unfinished.replace(self._path)
        except OSError as error:  # a full disk ends the run where a checkpoint or a metric is to be written, with a better message
            log.warning("%s cannot be written: %s", self._path, error)
