"""Rows that turn out to be unusable while a run reads them: counted, written down, and too many of them end the run."""

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bacl_jax.data.source import DataError

log = logging.getLogger("bacl_jax")

_AT_LEAST = 1000  # rows asked for before a share is judged
Place = tuple[int | None, int | None, int | None]  # step, position in its global batch, row; none of them for what was found at the start


class Faults:
    """Thread-safe. `counts` has the number of bad rows met by (kind, shard), of this run and of what `path` already tells.

    path:  a JSON line for each bad row at each position of a step, and for each row or file left out at the start; None: none is written.
           A line that a kill cut short is dropped.
    limit: largest share of bad rows among those asked for, judged from the first 1,000 on.
    """

    def __init__(self, limit: float, path: Path | None = None):
        self._limit, self._path, self._lock = limit, path, threading.Lock()
        self._asked = self._bad = 0
        self._written: set[tuple[Place, str]] = set()
        self._former: dict[Place, dict[str, str]] = {}
        self._ahead: list[tuple[int, str]] = []  # (step, source) of those that `before` has not counted
        self._before: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()
        if path is not None and path.exists():
            self._resume(path)
        for each in sorted(path.parent.glob(f"{path.name.split('.')[0]}*{path.suffix}")) if path is not None else ():
            self._former |= {_place(fault): fault for fault in _faults_of(_whole_lines(each.read_bytes())) if fault["step"] is not None}

    def _resume(self, path: Path) -> None:
        content = path.read_bytes()
        whole = _whole_lines(content)
        for fault in _faults_of(whole):
            self._count(_place(fault), fault["source"], fault["kind"], fault["shard"], fault["error"])
        if len(whole) < len(content):
            os.truncate(path, len(whole))

    def _count(self, place: Place, source: str, kind: str, shard: str, error: str) -> bool:
        """False for a row at a place that was counted before: a resumed run reads some steps again."""
        known = (place, "" if place[0] is not None else error)
        if known in self._written:
            return False
        self._written.add(known)
        self.counts[kind, shard] += 1
        self._ahead.append((-1 if place[0] is None else place[0], source))
        return True

    def before(self, step: int) -> dict[str, int]:
        """Bad rows by source: of the start and of the steps before `step`, which must not be smaller than in the call before."""
        with self._lock:
            self._before.update(source for at, source in self._ahead if at < step)
            self._ahead = [entry for entry in self._ahead if entry[0] >= step]
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
            raise DataError(fault["error"], kind=fault["kind"], shard=fault["shard"])

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
            if self._write((step, position, row), source, error) and self.counts[error.kind, error.shard] == 1:
                log.warning("left out, and counted from now on: %s", error)
            if self._asked >= _AT_LEAST and self._bad > self._limit * self._asked:
                (kind, shard), worst = self.counts.most_common(1)[0]
                raise DataError(
                    f"{self._bad:,} of {self._asked:,} rows cannot be used, more than data.max_error_share = {self._limit}: "
                    f"most often {kind!r}{f' in {shard}' if shard else ''} ({worst:,}); repair the data or raise the share",
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

    def summary(self) -> list[str]:
        """Lines for a person: what was left out, by kind, with the shard that has most of it. None where nothing was."""
        with self._lock:
            counts = dict(self.counts)
        kinds: Counter[str] = Counter()
        for (kind, _), count in counts.items():
            kinds[kind] += count
        lines = []
        for kind, count in kinds.most_common():
            shards = Counter({shard: number for (other, shard), number in counts.items() if other == kind})
            [(shard, most)] = shards.most_common(1)
            lines.append(f"left out, {kind}: {count:,}" + f", in {len(shards):,} files, most ({most:,}) in {shard}" * bool(shard))
        return lines + [f"each of them in {self._path}"] * bool(lines and self._path)


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _faults_of(lines: bytes) -> list[dict]:
    return [json.loads(line) for line in lines.splitlines()]


def _place(fault: dict) -> Place:
    return fault["step"], fault["position"], fault["row"]
