"""The index of tar shards: one file, memory-mapped, 16 bytes a row; no pickle.

Little-endian. Header of 40 bytes, uint64: the magic, rows n, shards S, bytes of the table, CRC-32 of the table. Then n rows of 4 uint32
(`tar_scan.pack`), shard by shard in the path's order. Then the table, JSON: the fields of `Shard` for each of the S shards.

`build` keeps what it has finished in a journal beside the index: a killed run goes on there, and the index appears whole or not at all.

Dimension legend: n rows, 4 = head, size, caption, bits; S shards.
"""

import dataclasses
import fcntl
import json
import mmap
import multiprocessing
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt32
from rich.progress import track

from bacl_jax.data import files, storage, tar_scan
from bacl_jax.errors import DataError

NAME = "shards.index"  # beside the shards, unless another path is given
REMEDY = "run launch.index again"
_MAGIC, _HEADER = b"BACLTAR1", struct.Struct("<8sQQQQ")
_RECORD = struct.Struct("<4sIQI")  # of the journal: magic, bytes of the JSON part, bytes of the rows, CRC-32 of both
_RECORD_MAGIC = b"SHRD"
_ROW_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Shard:
    """What the index tells of a shard.

    name:     its path below the folder that all shards share.
    size:     bytes; -1 if it could not be read when it was indexed.
    stamp:    when a local shard was last written (`storage.stamp`), else 0.
    left_out: kind -> how often; examples: kind -> the first message.
    """

    name: str
    size: int
    rows: int
    stamp: int = 0
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    examples: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Index:
    """An open index: `rows` is mapped, so that only the pages in use are in memory; `shards` in the order of their rows. `checksum` is
    that of the table."""

    rows: UInt32[np.ndarray, "n 4"]
    shards: Sequence[Shard]
    checksum: int

    @property
    def left_out(self) -> Counter[str]:
        """Rows, members and shards left out of all shards, by kind."""
        return sum((Counter(shard.left_out) for shard in self.shards), Counter())

    def summary(self) -> list[str]:
        """Lines for a person: rows, and what was left out with the first example of each kind."""
        where = {kind: [shard for shard in self.shards if kind in shard.left_out] for kind in self.left_out}
        return [f"{len(self.rows):,} rows in {len(self.shards):,} shards"] + [
            f"left out, {kind}: {count:,} in {len(where[kind]):,} shards, as {where[kind][0].examples[kind]}"
            for kind, count in self.left_out.most_common()
        ]


def default_path(locations: Sequence[str]) -> str:
    """Beside the shards, in the folder that they share. Raises DataError for remote shards, whose index must be given a local path."""
    if any(map(storage.is_remote, locations)):
        raise DataError(f"{locations[0]} is remote; give the index a local path (--out, data.index)", kind="index")
    return os.path.join(files.common_folder(locations), NAME)


def read(path: str) -> Index:
    """Open an index. Raises DataError of kind "index": no such file, no index, cut off, damaged table.

    Cost: O(S), nothing for each row; the rows are read where they are asked for.
    """
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            header = file.read(_HEADER.size)
            magic, n, count, table_bytes, checksum = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
            if magic != _MAGIC or length != _HEADER.size + n * _ROW_BYTES + table_bytes:
                raise DataError(f"{path}: {length:,} bytes, not a whole index of tar shards; {REMEDY}", kind="index", shard=path)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{path}: no index ({error.strerror or error}); run launch.index", kind="index", shard=path) from error
    table = mapped[_HEADER.size + n * _ROW_BYTES :]
    if zlib.crc32(table) != checksum:
        raise DataError(f"{path}: the table of shards is damaged; {REMEDY}", kind="index", shard=path)
    shards = [Shard(**fields) for fields in json.loads(table)]
    if len(shards) != count or sum(shard.rows for shard in shards) != n:
        raise DataError(f"{path}: the table of shards does not fit its rows; {REMEDY}", kind="index", shard=path)
    rows = np.frombuffer(mapped, "<u4", count=4 * n, offset=_HEADER.size).reshape(n, 4)
    return Index(rows, shards, checksum)


def write(path: str, parts: Iterable[tuple[Shard, UInt32[np.ndarray, "n 4"]]]) -> None:
    """Write an index shard by shard: to a temporary name, flushed to the disk, then renamed. Memory: of one shard's rows, and O(S)."""
    temporary, shards = f"{path}.tmp", []
    with open(temporary, "wb") as file:
        file.write(bytes(_HEADER.size))
        for shard, rows in parts:
            file.write(np.ascontiguousarray(rows, "<u4").tobytes())
            shards.append(shard)
        table = json.dumps([dataclasses.asdict(shard) for shard in shards], separators=(",", ":")).encode()
        file.write(table)
        file.seek(0)
        file.write(_HEADER.pack(_MAGIC, sum(shard.rows for shard in shards), len(shards), len(table), zlib.crc32(table)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path)


def _sync_folder(path: str) -> None:
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def build(path: str, out: str | None = None, *, workers: int = 1, on_error: str = "raise") -> Index:
    """Index the shards that `path` names (`files.expand`) into the file `out` (by default beside them), and open it.

    Shards that a former index or an interrupted run holds with the same size (and, local ones, the same time) are not scanned again.
    workers:  local shards are scanned by so many processes, remote ones by threads; 1 scans in this process.
    on_error: "raise" stops at the first fault with a DataError that names shard, member and remedy; "skip" leaves out and counts.
    """
    locations = files.expand(path, ".tar")
    out = out or default_path(locations)
    names = files.below_common_folder(locations)
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with open(f"{out}.partial", "ab+") as journal:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
            _build(dict(zip(names, locations, strict=True)), out, journal, workers, on_error)
            os.unlink(f"{out}.partial")
    except BlockingIOError as error:
        raise DataError(f"{out}: another process is building this index; wait for it", kind="index", shard=out) from error
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error}); give another --out", kind="index", shard=out) from error
    return read(out)


Part = tuple[Shard, Callable[[], np.ndarray]]  # what is known of a shard, and how to get its rows


def _build(locations: Mapping[str, str], out: str, journal: BinaryIO, workers: int, on_error: str) -> None:
    known = (_of_index(out) if os.path.exists(out) else {}) | _of_journal(journal)
    found = dict(zip(locations, storage.sizes(list(locations.values())), strict=True))
    todo: list[Shard] = []
    done: dict[str, Part] = {}
    for name, size in found.items():
        if isinstance(size, DataError):
            done[name] = _unread(name, size, on_error), _no_rows
            continue
        fresh = Shard(name, size, 0, storage.stamp(locations[name]))
        former = known.get(name, (fresh, _no_rows))[0]
        if name in known and (former.size, former.stamp) == (size, fresh.stamp) and not (on_error == "raise" and former.left_out):
            done[name] = known[name]
        else:
            todo.append(fresh)
    with _executor(min(workers, len(todo)), any(map(storage.is_remote, locations.values()))) as executor:
        futures = {executor.submit(tar_scan.scan, locations[each.name], each.name, each.size): each for each in todo}
        try:
            for future in track(as_completed(futures), "indexing", total=len(todo), disable=not todo):
                shard = futures.pop(future)
                try:
                    scan = future.result()
                except DataError as error:
                    done[shard.name] = _unread(shard.name, error, on_error), _no_rows
                else:
                    done[shard.name] = _append(journal, _scanned(shard, scan, on_error), scan.rows)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    write(out, ((shard, rows()) for shard, rows in map(done.__getitem__, locations)))


def _executor(workers: int, remote: bool) -> Executor:
    if remote or workers <= 1:
        return ThreadPoolExecutor(max(workers, 1))
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))  # a fork of a process with threads may hang


def _unread(name: str, error: DataError, on_error: str) -> Shard:
    if on_error == "raise":
        raise error
    return Shard(name, -1, 0, left_out={error.kind: 1}, examples={error.kind: str(error)})


def _scanned(shard: Shard, scan: tar_scan.Scan, on_error: str) -> Shard:
    if on_error == "raise" and scan.left_out:
        kind, (_, message) = next(iter(scan.left_out.items()))
        raise DataError(f"{message}, or leave out what is bad with --on_error=skip", kind=kind, shard=shard.name)
    counts = {kind: count for kind, (count, _) in scan.left_out.items()}
    examples = {kind: message for kind, (_, message) in scan.left_out.items()}
    return dataclasses.replace(shard, rows=len(scan.rows), left_out=counts, examples=examples)


def _no_rows() -> np.ndarray:
    return np.empty((0, 4), np.uint32)


def _of_index(path: str) -> dict[str, Part]:
    """The shards of a former index; none if it cannot be read, since it is then built anew."""
    try:
        index = read(path)
    except DataError:
        return {}
    ends = np.cumsum([shard.rows for shard in index.shards]).tolist()
    return {
        shard.name: (shard, partial(index.rows.__getitem__, slice(end - shard.rows, end)))
        for shard, end in zip(index.shards, ends, strict=True)
    }


def _append(journal: BinaryIO, shard: Shard, rows: np.ndarray) -> Part:
    fields = json.dumps(dataclasses.asdict(shard)).encode()
    content = np.ascontiguousarray(rows, "<u4").tobytes()
    start = journal.seek(0, os.SEEK_END) + _RECORD.size + len(fields)
    journal.write(_RECORD.pack(_RECORD_MAGIC, len(fields), len(content), zlib.crc32(content, zlib.crc32(fields))) + fields + content)
    journal.flush()
    os.fsync(journal.fileno())
    return shard, partial(_rows_at, journal, start, shard.rows)


def _rows_at(journal: BinaryIO, start: int, rows: int) -> np.ndarray:
    return np.frombuffer(os.pread(journal.fileno(), rows * _ROW_BYTES, start), "<u4").reshape(-1, 4)


def _of_journal(journal: BinaryIO) -> dict[str, Part]:
    """The shards of an interrupted run. What was written last may be torn: from the first damaged record on, the journal is cut."""
    found, position = {}, 0
    journal.seek(0)
    while len(head := journal.read(_RECORD.size)) == _RECORD.size:
        magic, fields_bytes, rows_bytes, checksum = _RECORD.unpack(head)
        rest = os.fstat(journal.fileno()).st_size - journal.tell()
        if magic != _RECORD_MAGIC or fields_bytes + rows_bytes > rest:
            break
        fields, content = journal.read(fields_bytes), journal.read(rows_bytes)
        if zlib.crc32(content, zlib.crc32(fields)) != checksum:
            break
        shard = Shard(**json.loads(fields))
        found[shard.name] = shard, partial(_rows_at, journal, position + _RECORD.size + fields_bytes, shard.rows)
        position = journal.tell()
    journal.truncate(position)
    return found
