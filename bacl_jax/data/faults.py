"""Rows that turn out to be unusable while a run reads them: counted, written down, and too many of them end the run."""

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from bacl_jax.errors import DataError

log = logging.getLogger("bacl_jax")

_AT_LEAST = 1000  # rows asked for before a share is judged
_NAME = "data_errors*.jsonl"  # of all processes
_FIELDS = {"step", "position", "row", "source", "kind", "shard", "error"}
Place = tuple[int | None, int | None, int | None]  # step, position in its global batch, row; none of them for what was found at the start


class Faults:
    """Thread-safe. `counts` has the number of bad rows met by (kind, shard), of this run and of what `path` already tells.

    path:  a JSON line for each bad row at each position of a step, and for each row or file left out at the start; None: none is written.
           A line that a kill cut short is dropped, and one that is damaged passed over.
    limit: largest share of bad rows among those asked for since this start, judged from the first 1,000 on.
    first_step: from which on steps may be read again; what is known of earlier ones is not kept. Cost: memory of the bad rows of the
           steps from there to the one in work, of all processes.
    """

    def __init__(self, limit: float, path: Path | None = None, *, first_step: int = 0):
        self._limit, self._path, self._lock = limit, path, threading.Lock()
        self._asked = self._bad = 0
        self._worst: Counter[tuple[str, str]] = Counter()  # since this start
        self._written: set[tuple[Place, str]] = set()
        self._former: dict[Place, tuple[str, str, str]] = {}
        self._ahead: list[tuple[int, str]] = []  # (step, source) of those that `before` has not counted
        self._before: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()
        if path is None:
            return
        if path.exists():
            _cut(path)
        for each in sorted(path.parent.glob(_NAME)):
            for fault in _faults_of(each):
                place = _place(fault)
                if each == path:
                    self._count(place, fault["source"], fault["kind"], fault["shard"], fault["error"])
                if place[0] is not None and place[0] >= first_step:
                    self._former[place] = fault["kind"], fault["shard"], fault["error"]
        self._forget(first_step)

    def _count(self, place: Place, source: str, kind: str, shard: str, error: str) -> bool:
        """False for a row at a place that was counted before: a resumed run reads some steps again."""
        known = (place, "" if place[0] is not None else error)
        if known in self._written:
            return False
        self._written.add(known)
        self.counts[kind, shard] += 1
        self._ahead.append((-1 if place[0] is None else place[0], source))
        return True

    def _forget(self, step: int) -> None:
        """What is known of rows of the steps before `step`, which are read no more, but for their number."""
        self._written = {known for known in self._written if known[0][0] is None or known[0][0] >= step}
        self._former = {place: fault for place, fault in self._former.items() if place[0] is None or place[0] >= step}

    def before(self, step: int) -> dict[str, int]:
        """Bad rows by source: of the start and of the steps before `step`, which must not be smaller than in the call before."""
        with self._lock:
            self._before.update(source for at, source in self._ahead if at < step)
            self._ahead = [entry for entry in self._ahead if entry[0] >= step]
            self._forget(step)
            return dict(self._before)

    def asked(self, rows: int) -> None:
        """So many rows are about to be read."""
        with self._lock:
            self._asked += rows

    def repeat(self, *, step: int, position: int, row: int) -> None:
        """DataError where any process of this run could not use the row at this place before: so it is replaced again, though a remote
        may have recovered meanwhile, and a resumed run has the rows of the run that was stopped."""
        fault = self._former.get((step, position, row))
        if fault is not None:
            kind, shard, error = fault
            raise DataError(error, kind=kind, shard=shard)

    def opened(self, source: str, errors: Iterable[DataError]) -> None:
        """Rows and files of a source that were left out when the data were opened."""
        with self._lock:
            for error in errors:
                self._write((None, None, None), source, error)

    def add(self, error: DataError, *, step: int, position: int, row: int, source: str = "") -> None:
        """A row at a position of a step's global batch could not be used. DataError past the limit, naming the worst kind and shard.

        source: the part of a mixture that the row is of.
        """
        with self._lock:
            self._bad += 1
            self._worst[error.kind, error.shard] += 1
            if self._write((step, position, row), source, error) and self.counts[error.kind, error.shard] == 1:
                log.warning("left out, and counted from now on: %s", error)
            if self._asked >= _AT_LEAST and self._bad > self._limit * self._asked:
                (kind, shard), worst = self._worst.most_common(1)[0]
                raise DataError(
                    f"{self._bad:,} of {self._asked:,} rows read since the start cannot be used, more than data.max_error_share = "
                    f"{self._limit}: most often {kind!r}{f' in {shard}' if shard else ''} ({worst:,}); repair the data or raise the share",
                    kind="too_many",
                )

    def _write(self, place: Place, source: str, error: DataError) -> bool:
        """Counts and writes down what is new; False for what is not."""
        if not self._count(place, source, error.kind, error.shard, str(error)):
            return False
        if self._path is not None:
            fault = dict(zip(("step", "position", "row"), place, strict=True))
            fault |= {"source": source, "kind": error.kind, "shard": error.shard, "error": str(error)}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fault) + "\n")
        return True


def summary(workdir: str | os.PathLike[str]) -> list[str]:
    """Lines for a person: what all processes of a run left out, by kind, with the shard that has most of it. None where nothing was."""
    paths = sorted(Path(workdir).glob(_NAME))
    places = {(_place(fault), fault["kind"], fault["shard"], fault["error"]) for path in paths for fault in _faults_of(path)}
    counts = Counter((kind, shard) for _, kind, shard, _ in places)
    kinds: Counter[str] = Counter()
    for (kind, _), count in counts.items():
        kinds[kind] += count
    lines = []
    for kind, count in kinds.most_common():
        shards = Counter({shard: number for (other, shard), number in counts.items() if other == kind})
        [(shard, most)] = shards.most_common(1)
        lines.append(f"left out, {kind}: {count:,}" + f", in {len(shards):,} files, most ({most:,}) in {shard}" * bool(shard))
    return lines + [f"each of them in {path}" for path in paths if lines]


def _cut(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _faults_of(path: Path) -> Iterator[dict]:
    """The lines of a file that are whole."""
    with path.open("rb") as file:
        for line in file:
            try:
                fault = json.loads(line)
            except ValueError:
                fault = None
            if isinstance(fault, dict) and fault.keys() >= _FIELDS:
                yield fault
            elif line.endswith(b"\n"):
                log.warning("%s: a line that cannot be read is passed over", path)


def _place(fault: dict) -> Place:
    return fault["step"], fault["position"], fault["row"]
