"""Rows that turn out to be unusable while a run reads them: counted, written down, and too many of them end the run."""

import json
import logging
import os
import threading
from collections import Counter
from pathlib import Path

from bacl_jax.data.source import DataError

log = logging.getLogger("bacl_jax")

_AT_LEAST = 1000  # rows asked for before a share is judged


class Faults:
    """Thread-safe. `counts` has the number of bad rows met by (kind, shard), of this run and of what `path` already tells.

    path:  a JSON line for each bad row at each position of a step; None: none is written. A line that a kill cut short is dropped.
    limit: largest share of bad rows among those asked for, judged from the first 1,000 on.
    """

    def __init__(self, limit: float, path: Path | None = None):
        self._limit, self._path, self._lock = limit, path, threading.Lock()
        self._asked = self._bad = 0
        self._written: set[tuple[int, int, int]] = set()
        self._ahead: list[tuple[int, str]] = []  # (step, source) of those that `before` has not counted
        self._before: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()
        if path is not None and path.exists():
            self._resume(path)

    def _resume(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            fault = json.loads(line)
            self._count((fault["step"], fault["position"], fault["row"]), (fault["kind"], fault["shard"]), fault["source"])
        if len(whole) < len(content):
            os.truncate(path, len(whole))

    def _count(self, place: tuple[int, int, int], what: tuple[str, str], source: str) -> bool:
        """False for a row at a place that was counted before: a resumed run reads some steps again."""
        if place in self._written:
            return False
        self._written.add(place)
        self.counts[what] += 1
        self._ahead.append((place[0], source))
        return True

    def before(self, step: int) -> dict[str, int]:
        """Bad rows by source among those of the steps before `step`, which must not be smaller than in the call before."""
        with self._lock:
            self._before.update(source for at, source in self._ahead if at < step)
            self._ahead = [entry for entry in self._ahead if entry[0] >= step]
            return dict(self._before)

    def asked(self, rows: int) -> None:
        """So many rows are about to be read."""
        with self._lock:
            self._asked += rows

    def add(self, error: DataError, *, step: int, position: int, row: int, source: str = "") -> None:
        """A row at a position of a step's global batch could not be used. DataError past the limit, naming the worst kind and shard.

        source: the part of a mixture that the row is of.
        """
        with self._lock:
            self._bad += 1
            what = (error.kind, error.shard)
            if self._count((step, position, row), what, source):
                if self.counts[what] == 1:
                    log.warning("left out, and counted from now on: %s", error)
                if self._path is not None:
                    fault = {"step": step, "position": position, "row": row, "source": source}
                    fault |= {"kind": error.kind, "shard": error.shard, "error": str(error)}
                    with self._path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(fault) + "\n")
            if self._asked >= _AT_LEAST and self._bad > self._limit * self._asked:
                (kind, shard), worst = self.counts.most_common(1)[0]
                raise DataError(
                    f"{self._bad:,} of {self._asked:,} rows cannot be used, more than data.max_error_share = {self._limit}: "
                    f"most often {kind!r}{f' in {shard}' if shard else ''} ({worst:,}); repair the data or raise the share",
                    kind="too_many",
                )
