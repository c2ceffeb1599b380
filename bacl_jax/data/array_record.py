"""ArrayRecord files with whole rows in them: what bacl_jax.data.convert makes of any source, and the reader for it.

A folder holds NAME-00000-of-00012.array_record and so on, NAME being the folder's, and index.json, which lists rows, bytes and sha256
of every file. A file without its line in the index is none: the library takes a file that was cut off for an empty one.

One record, little endian; picture, key and captions follow each other without gaps, texts are UTF-8:

    bytes     content
    0-3       "BJR1"
    4-7       CRC-32 (zlib) of all bytes from 8 on
    8-15      the record's place: the file's number times shard_rows, plus the position in the file, both from 0
    16-19     bytes of the picture
    20-23     bytes of the key
    24-27     number of captions, c
    28-       bytes of each caption, 4 bytes each, then picture, key, captions
"""

import dataclasses
import importlib
import json
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bacl_jax.data import files, storage
from bacl_jax.data.cache import Cache
from bacl_jax.data.stream import Record
from bacl_jax.errors import DataError

INDEX, SUFFIX = "index.json", ".array_record"
OPEN_FILES = 256
library: Any = importlib.import_module("array_record.python.array_record_module")  # compiled, without types
_MAGIC = b"BJR1"
_HEADER = struct.Struct("<4sIQIII")
_REMEDY = "write it again with bacl_jax.data.convert"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished file of a folder: its name there, rows, size in bytes, sha256 (hexadecimal), and rows left out, by kind."""

    name: str
    rows: int
    bytes: int
    sha256: str
    skipped: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Index:
    """What index.json holds.

    source_rows, shard_rows: rows of the source, and how many of them belong to a file; file i has rows i * shard_rows and following.
    source: what tells it from others: number of a row of it -> sha256 of the row's bytes.
    shards: the finished files, in order; all of them when there are ceil(source_rows / shard_rows).
    """

    source_rows: int
    shard_rows: int
    source: dict[str, str]
    shards: tuple[Shard, ...]

    @property
    def files(self) -> int:
        """How many files the folder has when it is complete."""
        return -(-self.source_rows // self.shard_rows)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def skipped(self) -> Counter[str]:
        """Rows left out of all files, by kind."""
        return sum((Counter(shard.skipped) for shard in self.shards), Counter())

    def summary(self) -> list[str]:
        """Lines for a person: rows, and what was left out."""
        lines = [f"left out, {kind}: {count:,}" for kind, count in self.skipped.most_common()]
        return [f"{self.rows:,} rows in {len(self.shards):,} files", *lines]

    def to_json(self) -> str:
        skipped = dict(sorted(self.skipped.items()))
        totals = {"rows": self.rows, "skipped": skipped, "complete": len(self.shards) == self.files}
        return json.dumps({"format": _MAGIC.decode(), **totals, **dataclasses.asdict(self)}, indent=1) + "\n"


def read_index(folder: Path) -> Index:
    """Raises DataError of kind "missing" where there is no index.json, "syntax" where it is damaged."""
    path = folder / INDEX
    try:
        content = json.loads(path.read_bytes())
        shards = tuple(Shard(**shard) for shard in content["shards"])
        if not isinstance(content["source"], dict):
            raise ValueError("the source is no table of rows")
        index = Index(content["source_rows"], content["shard_rows"], content["source"], shards)
        numbers = [index.source_rows, index.shard_rows - 1, *(number for shard in shards for number in (shard.rows, shard.bytes))]
        if content["rows"] != index.rows:
            raise ValueError("the number of rows is not the sum of those of the files")
        if content["format"] != _MAGIC.decode() or not (min(numbers) >= 0 and max(numbers) < 2**48 and all(map(_is_name, shards))):
            raise ValueError("a number, a name or the format is not what the converter writes")
    except OSError as error:
        raise DataError(
            f"{folder}: no {INDEX} ({error.strerror}); ArrayRecord is read as the converter writes it", kind="missing", shard=str(path)
        ) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error!r}); {_REMEDY}", kind="syntax", shard=str(path)) from error
    return index


def _is_name(shard: Shard) -> bool:
    return shard.name.endswith(SUFFIX) and Path(shard.name).name == shard.name


class ArrayRecordFiles:
    """Rows of one or more folders that bacl_jax.data.convert filled, in the order of folders and rows (bacl_jax.data.stream.Records).

    `path` is a folder, a pattern or braces; local, since the library reads local files alone: mount a bucket, or copy it.

    Cost: opening reads one small file a folder, whatever the number of shards. A look-up is one read at a known place (an open file
    keeps its table of positions, 8 bytes a row); up to OPEN_FILES files stay open. Any order of rows costs the same on a local disk.

    Raises DataError with file and row (the first is 1) named. Kinds: missing (no such folder or file, a conversion not finished), type (a
    remote folder), syntax (damaged), checksum (a row's bytes are not those that were written), empty.
    """

    def __init__(self, path: str) -> None:
        self._files: list[tuple[str, Shard, int]] = []  # path, what the index says, place of the first row
        for index_file in files.expand(path, INDEX):
            if storage.is_remote(index_file):
                raise DataError(f"{index_file}: ArrayRecord files are read from a local folder; mount or copy it", kind="type", shard=path)
            folder = Path(index_file).parent
            if Path(index_file).name != INDEX:
                raise DataError(f"{index_file}: name the folder, {folder}: it is read as a whole", kind="type", shard=index_file)
            index = read_index(folder)
            if len(index.shards) != index.files:
                found = f"the conversion stopped after {len(index.shards)} of {index.files} files"
                raise DataError(f"{folder}: {found}; start it again, it goes on from there", kind="missing", shard=index_file)
            self._files += [(str(folder / shard.name), shard, i * index.shard_rows) for i, shard in enumerate(index.shards)]
        self._end = np.cumsum([shard.rows for _, shard, _ in self._files], dtype=np.int64)
        if len(self) == 0:
            raise DataError(f"{path}: no row in {len(self._files)} ArrayRecord files", kind="empty", shard=path)
        self._readers: Cache[Any] = Cache(OPEN_FILES)

    def __len__(self) -> int:
        return int(self._end[-1]) if len(self._end) else 0

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self._end, index, side="right"))
        file, shard, first = self._files[number]
        position = index - (int(self._end[number - 1]) if number else 0)
        reader = self._readers.get(number, lambda: (open_shard(file, shard), 1))
        try:
            [content] = reader.read([position])
        except (RuntimeError, ValueError, IndexError) as error:
            kind = "checksum" if "hash mismatch" in str(error) else "syntax"
            raise DataError(f"{file}, row {position + 1}: not readable ({error}); {_REMEDY}", kind=kind, shard=file) from error
        try:
            return dataclasses.replace(decode(content, first + position), shard=file)
        except DataError as error:
            raise DataError(f"{file}, row {position + 1}: {error}; {_REMEDY}", kind=error.kind, shard=file) from error


def open_shard(file: str, shard: Shard, *, index: str = INDEX, remedy: str = _REMEDY) -> Any:
    """The file's reader, after a check of its size and its number of rows. Its contents are checked row by row.

    index: the file that `shard` comes from; remedy: what to do about a damaged file; both for the message of the DataError.
    """
    try:
        size = Path(file).stat().st_size
        if size != shard.bytes:
            raise DataError(f"{file}: {size:,} bytes, {index} says {shard.bytes:,}; {remedy}", kind="syntax", shard=file)
        reader = library.ArrayRecordReader(file, options="readahead_buffer_size:0", file_reader_buffer_size=2**15)
        rows = reader.num_records()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}); restore it or write it again", kind="missing", shard=file) from error
    except (RuntimeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: not readable as ArrayRecord ({error}); {remedy}", kind="syntax", shard=file) from error
    if rows != shard.rows:
        raise DataError(f"{file}: {rows:,} rows can be found, {index} says {shard.rows:,}; {remedy}", kind="syntax", shard=file)
    return reader


def encode(record: Record, place: int) -> bytes:
    """The bytes of a row. DataError of kind "encoding" for a text that is no UTF-8, "size" for a row of 4 GiB or more."""
    try:
        key, captions = record.key.encode(), [caption.encode() for caption in record.captions]
    except UnicodeEncodeError as error:
        raise DataError(f"{record.key!r}: a text cannot be written as UTF-8 ({error})", kind="encoding") from error
    total = len(record.image) + len(key) + sum(map(len, captions))
    if total >= 2**32:
        raise DataError(f"{record.key!r}: {total:,} bytes in one row; 4 GiB at most", kind="size")
    lengths = struct.pack(f"<{len(captions)}I", *map(len, captions))
    numbers = (place, len(record.image), len(key), len(captions))
    body = b"".join([_HEADER.pack(b"", 0, *numbers)[8:], lengths, record.image, key, *captions])
    return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def decode(content: bytes, place: int) -> Record:
    """What `encode` was given. DataError of kind "checksum" for other bytes, "syntax" for what `encode` did not write there."""
    if len(content) < _HEADER.size or content[:4] != _MAGIC:
        raise DataError(f"a record that starts with {content[:4]!r}, expected {_MAGIC!r}", kind="syntax")
    _, checksum, found, image_bytes, key_bytes, count = _HEADER.unpack_from(content)
    if zlib.crc32(memoryview(content)[8:]) != checksum:
        raise DataError("the checksum is not that of the bytes", kind="checksum")
    if found != place:
        raise DataError(f"the record of place {found} lies at {place}: files were exchanged", kind="checksum")
    start, parts = _HEADER.size + 4 * count, []
    if start > len(content):
        raise DataError(f"{count:,} captions announced in {len(content):,} bytes", kind="syntax")
    lengths = [image_bytes, key_bytes, *struct.unpack_from(f"<{count}I", content, _HEADER.size)]
    if start + sum(lengths) != len(content):
        raise DataError(f"{len(content):,} bytes, the header announces other lengths", kind="syntax")
    for length in lengths:
        parts.append(content[start : start + length])
        start += length
    image, key, *captions = parts
    try:
        return Record(image, tuple(caption.decode() for caption in captions), key.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"a text that is not UTF-8 ({error})", kind="encoding") from error
