"""Any source to ArrayRecord files, whose form bacl_jax/data/array_record.py defines."""

import contextlib
import dataclasses
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bacl_jax.data import array_record
from bacl_jax.data.array_record import INDEX, SUFFIX, Index, Shard
from bacl_jax.data.source import OnSkip
from bacl_jax.data.stream import Record, Records
from bacl_jax.errors import DataError

log = logging.getLogger("bacl_jax")

_THREADS, _READ_AHEAD = 8, 64  # rows of the source are read side by side, so many at a time
_WRITER = "group_size:1,uncompressed"  # each row by itself, for random access; pictures are compressed already


def write(
    records: Records, out: Path, *, shard_rows: int = 10_000, on_error: Literal["raise", "skip"] = "raise", on_skip: OnSkip | None = None
) -> Index:
    """Write all rows of a source to the folder `out` as ArrayRecord files of `shard_rows` rows of the source each.

    File i holds the rows i * shard_rows and following, less those left out, so a file is the same whenever it is written. Each is written
    under a hidden name, read back, flushed to the disk, renamed, and then listed in index.json (rows, bytes, sha256, rows left out by
    kind). Started again after it was stopped at any point, `write` keeps the files listed and goes on. One writer a folder.

    on_error: "raise" passes on the first DataError of a row; "skip" leaves such rows out, counts them, and hands each error to `on_skip`.

    Cost: one reading of the source in its order, 8 rows at a time; the pictures' size on disk, and 128 KiB a file beyond it at most.
    Raises DataError where the source has no row ("empty"), or where `out` holds the conversion of another source ("type"): of another
    number of rows, or whose first, middle or last row is another one.
    """
    if shard_rows < 1:
        raise ValueError(f"a file needs at least one row, found shard_rows = {shard_rows}")
    if len(records) == 0:
        raise DataError("the source has no row to convert", kind="empty")
    out.mkdir(parents=True, exist_ok=True)
    for partial in out.glob(f".*{SUFFIX}.partial"):
        partial.unlink()
    begun = _begun(out, Index(len(records), shard_rows, _digests(records), ()))
    finished = {shard.name: shard for shard in begun.shards}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress, ThreadPoolExecutor(_THREADS) as pool:
        task = progress.add_task("writing ArrayRecord", total=len(records))
        for number in range(begun.files):
            name = f"{out.resolve().name}-{number:05d}-of-{begun.files:05d}{SUFFIX}"
            rows = range(number * shard_rows, min((number + 1) * shard_rows, len(records)))
            if name not in finished:
                finished[name] = _write_shard(out / name, rows.start, _rows(records, rows, pool), on_error, on_skip)
                index = dataclasses.replace(begun, shards=tuple(finished[key] for key in sorted(finished)))
                replace(out / INDEX, index.to_json().encode())
            progress.update(task, completed=rows.stop)
    index = array_record.read_index(out)
    skipped = index.skipped
    if skipped:
        log.warning("%s: %d rows left out: %s", out, sum(skipped.values()), dict(skipped))
    return index


def _digests(records: Records) -> dict[str, str]:
    """What tells the source from others of as many rows: of its first, its middle and its last row what would be written.

    A row that cannot be read is not in it: it may be mended before the next start.
    """
    found = {}
    for row in sorted({0, len(records) // 2, len(records) - 1}):
        with contextlib.suppress(DataError):  # raised or counted where the row's turn comes
            found[str(row)] = hashlib.sha256(array_record.encode(records[row], row)).hexdigest()
    return found


def _begun(out: Path, expected: Index) -> Index:
    """The index, with the files of an earlier start that need not be written again: listed, there, and of the listed size."""
    if not (out / INDEX).exists():
        return expected
    found = array_record.read_index(out)
    if (found.source_rows, found.shard_rows) != (expected.source_rows, expected.shard_rows):
        before = f"of {found.source_rows:,} rows, {found.shard_rows:,} a file"
        now = f"{expected.source_rows:,} rows, {expected.shard_rows:,} a file"
        raise DataError(f"{out}: holds a conversion {before}; this one has {now}; choose another folder", kind="type", shard=str(out))
    others = [int(row) + 1 for row, digest in expected.source.items() if found.source.get(row, digest) != digest]
    if others:
        what = f"holds a conversion of another source: row {others[0]:,} of {found.source_rows:,} was another one; choose another folder"
        raise DataError(f"{out}: {what}", kind="type", shard=str(out))
    files = [(shard, out / shard.name) for shard in found.shards]
    kept = tuple(shard for shard, path in files if path.is_file() and path.stat().st_size == shard.bytes)
    return dataclasses.replace(expected, source=dict(sorted((found.source | expected.source).items())), shards=kept)


def _rows(records: Records, rows: range, pool: ThreadPoolExecutor) -> Iterator[Record | DataError]:
    def read(row: int) -> Record | DataError:
        try:
            return records[row]
        except DataError as error:
            return error

    for start in range(rows.start, rows.stop, _READ_AHEAD):
        yield from pool.map(read, range(start, min(start + _READ_AHEAD, rows.stop)))


def _write_shard(path: Path, first: int, rows: Iterator[Record | DataError], on_error: str, on_skip: OnSkip | None) -> Shard:
    skipped: Counter[str] = Counter()

    def contents() -> Iterator[bytes]:
        position = first
        for row in rows:
            try:
                if isinstance(row, DataError):
                    raise row
                content = array_record.encode(row, position)
            except DataError as error:
                if on_error == "raise":
                    raise
                skipped[error.kind] += 1
                if on_skip is not None:
                    on_skip(error)
                continue
            yield content
            position += 1

    return store(path, contents(), skipped)


def store(path: Path, contents: Iterator[bytes], skipped: Counter[str]) -> Shard:
    """Writes a file of records under a hidden name, reads it back, and renames it. skipped: rows left out by kind, when all are written."""
    partial = path.with_name(f".{path.name}.partial")
    writer = array_record.library.ArrayRecordWriter(str(partial), _WRITER)
    written = 0
    try:
        for content in contents:
            writer.write(content)
            written += 1
        writer.close()
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(path.name, written, partial.stat().st_size, digest, dict(sorted(skipped.items())))
        array_record.open_shard(str(partial), shard)  # a disk that filled up shows here at the latest
        os.replace(partial, path)
    except RuntimeError as error:  # what the library makes of an error of the system
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
        with contextlib.suppress(RuntimeError):  # what failed above fails again
            writer.close()
    return shard


def replace(path: Path, content: bytes) -> None:
    """The file with new content, or, whenever the machine stops, still with the old one; the renames so far are on the disk as well."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
