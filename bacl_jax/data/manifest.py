"""A user's own pairs: a CSV, JSONL or Parquet file with an image path and a caption in each row, optionally an id and a split.

The file's ending chooses the reader: .csv (a header line, UTF-8, comma), .jsonl (one object a line, UTF-8), .parquet (text columns).
`data.image_column`, `caption_column`, `id_column` and `split_column` name the columns; others are ignored.

Image paths are relative to the manifest's folder and stay in it: "../x.png", or an absolute path that leads elsewhere, is refused, so that
a manifest from someone else cannot point at other files. Pictures that lie elsewhere are reached by a symbolic link in that folder.

Nothing is invented: rows without a split column are all training rows, and the validation and test splits then have zero rows.
"""

import csv
import dataclasses
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import transforms
from bacl_jax.data.source import SPLITS, ArraySource, DataError, DataSet, Example, OnSkip, Source, assemble, normalise

log = logging.getLogger("bacl_jax")

KEPT_BYTES = 512 * 2**20  # decoded pictures are kept in memory when they all fit into this
FIELD_CHARS = 2**24  # the longest field of a CSV file; the csv module's own limit, 131,072, is lower
_THREADS = min(32, 2 * (os.cpu_count() or 1))
_SPLIT_NAMES = ("train", *SPLITS)


class ManifestError(DataError):
    """A manifest, or one row of it, that cannot be used: the file, the row (the first data row is 1; None: the file as a whole), what
    was found, and the remedy."""

    def __init__(self, manifest: Path, row: int | None, found: str, remedy: str, *, kind: str):
        where = f"{manifest}" if row is None else f"{manifest}, data row {row}"
        super().__init__(f"{where}: {found}; {remedy}", kind=kind)
        self.manifest, self.row = manifest, row


@dataclasses.dataclass(frozen=True)
class Pair:
    """One accepted row; `path` exists, `caption` is normalised, `row` is its number in the manifest, from 1."""

    row: int
    path: Path
    caption: str
    anchor_key: str
    split: str


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Pairs whose pictures are decoded when they are asked for, shrunk to `max_side` on the shorter side."""

    pairs: Sequence[Pair]
    max_pixels: int
    max_side: int

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if the file changed since start-up and can no longer be read."""
        pair = self.pairs[index]
        try:
            image = transforms.decode(pair.path, max_pixels=self.max_pixels, max_side=self.max_side)
        except DataError as error:
            raise DataError(f"{pair.path}: {error}; it was readable at start-up", kind=error.kind) from error
        return Example(image, pair.caption, pair.anchor_key)


def load(config: DataConfig, on_skip: OnSkip | None = None) -> DataSet:
    """Read the manifest `config.path` and check every row and every picture, by decoding it once.

    Cost: the decoding of all pictures, in threads and with a progress bar (about 1 ms for 256 x 256, 10 ms for a photo of 12 megapixels,
    divided by the cores). Pictures shrunk to 2 * image_size stay in memory if they need at most 512 MiB in all (43,000 square ones at
    image_size 32; sides beyond the shorter count in full); otherwise they are decoded again whenever a batch holds them.

    Raises ManifestError, naming file, row (the first data row is 1) and remedy; with data.on_error = "skip" a bad row is left out, logged,
    counted by kind in `DataSet.skipped` and passed to `on_skip`. Kinds: columns, encoding, syntax, empty_caption, split, outside,
    missing, unreadable, bomb. What concerns the whole file (it is missing, of an unknown type, lacks a column, has broken quoting, holds
    no row for training) is raised in any case.
    """
    if not config.path:
        raise ConfigError('data.path = None; data.kind = "manifest" needs the path of a .csv, .jsonl or .parquet file')
    manifest = Path(config.path)
    skips = _Skips(config.on_error, on_skip)
    pairs = [pair for row, fields in _read(manifest, config) if (pair := skips.guard(_parse, manifest, row, fields, config)) is not None]
    pairs, images = _check_pictures(manifest, pairs, config, skips)
    if not any(pair.split == "train" for pair in pairs):
        found = f"no row is left for training; hold-outs have {len(pairs)}, left out were {dict(skips.counts) or 'none'}"
        raise ManifestError(manifest, None, found, "add rows or correct those left out", kind="empty")
    _warn_of_leaks(manifest, pairs)
    if skips.counts:
        log.warning("%s: %d rows left out: %s", manifest, sum(skips.counts.values()), dict(skips.counts))

    def make_source(rows: Sequence[int]) -> Source:
        chosen = [pairs[i] for i in rows]
        if images is None:
            return FileSource(chosen, config.max_pixels, 2 * config.image_size)
        return ArraySource([images[i] for i in rows], [pair.caption for pair in chosen], [pair.anchor_key for pair in chosen])

    sizes = Counter(pair.split for pair in pairs)
    return assemble(
        name=manifest.stem,
        description=f"{manifest}, {len(pairs):,} pairs ({', '.join(f'{split} {sizes[split]:,}' for split in _SPLIT_NAMES)})",
        make_source=make_source,
        row_captions=[pair.caption for pair in pairs],
        row_splits=[pair.split for pair in pairs],
        skipped=dict(skips.counts),
    )


class _Skips:
    """Applies data.on_error: raises, or counts, logs and reports."""

    def __init__(self, on_error: str, on_skip: OnSkip | None):
        self._raise = on_error == "raise"
        self._on_skip = on_skip
        self.counts: Counter[str] = Counter()

    def record(self, error: DataError) -> None:
        if self._raise:
            raise error
        self.counts[error.kind] += 1
        log.warning("left out: %s", error)
        if self._on_skip is not None:
            self._on_skip(error)

    def guard(self, function, *args):
        """The function's result, or None if it raised a DataError that is to be skipped."""
        try:
            return function(*args)
        except DataError as error:
            self.record(error)
            return None


def _read(manifest: Path, config: DataConfig) -> Iterator[tuple[int, "_Fields"]]:
    """(row, its fields) for each row of the file."""
    reader = _READERS.get(manifest.suffix.lower())
    if reader is None:
        raise ManifestError(manifest, None, f"unknown type {manifest.suffix!r}", f"use one of {', '.join(_READERS)}", kind="type")
    columns = [config.image_column, config.caption_column, *filter(None, (config.id_column, config.split_column))]
    try:
        yield from enumerate(reader(manifest, columns), start=1)
    except OSError as error:
        raise ManifestError(manifest, None, f"cannot be read ({error})", "correct data.path", kind="missing") from error


def _parse(manifest: Path, row: int, record: "_Fields", config: DataConfig) -> Pair:
    fields = {column: _text(manifest, row, column, value) for column, value in record.items()}
    caption = normalise(fields[config.caption_column])
    if not caption:
        raise ManifestError(
            manifest, row, f"the caption (column {config.caption_column!r}) is empty", "write one or remove the row", kind="empty_caption"
        )
    split = fields[config.split_column].strip() if config.split_column else "train"
    if split not in _SPLIT_NAMES:
        raise ManifestError(
            manifest, row, f"{split!r} in column {config.split_column!r}", f"use one of {', '.join(_SPLIT_NAMES)}", kind="split"
        )
    text = fields[config.image_column].strip()
    path = _locate(manifest, row, text)
    anchor_key = fields[config.id_column].strip() if config.id_column else ""
    return Pair(row, path, caption, anchor_key or os.path.normpath(text), split)


def _locate(manifest: Path, row: int, text: str) -> Path:
    """The picture's path, inside the manifest's folder by name; an existing regular file."""
    if not text:
        raise ManifestError(manifest, row, "the image path is empty", "write one or remove the row", kind="missing")
    folder = os.path.abspath(manifest.parent)
    path = os.path.normpath(os.path.join(folder, text))
    if os.path.commonpath([folder, path]) != folder:
        raise ManifestError(
            manifest, row, f"image {text!r} lies outside {folder}", "move it there, or make a symbolic link there", kind="outside"
        )
    try:
        exists = os.path.isfile(path)
    except ValueError:  # a NUL in the path
        exists = False
    if not exists:
        raise ManifestError(manifest, row, f"image {text!r} is no file in {folder}", "correct the path or remove the row", kind="missing")
    return Path(path)


def _text(manifest: Path, row: int, column: str, value: object) -> str:
    """A field as text: bytes are decoded, whole numbers written out (7.0 as 7), null is empty; anything else is an error."""
    if value is None:
        return ""
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, str):
            return value.encode("utf-8").decode()  # refuses what a reader could not decode, and lone surrogates of JSON
    except UnicodeError as error:
        raise ManifestError(manifest, row, f"column {column!r} is not UTF-8", "save the file as UTF-8", kind="encoding") from error
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # pandas writes whole numbers beside a null as floats
        return str(int(value))
    if isinstance(value, _Bad):
        raise ManifestError(manifest, row, value.found, value.remedy, kind=value.kind)
    raise ManifestError(manifest, row, f"column {column!r} holds a {type(value).__name__}", "write a text", kind="columns")


def _check_pictures(manifest: Path, pairs: list[Pair], config: DataConfig, skips: _Skips) -> tuple[list[Pair], list[np.ndarray] | None]:
    """Decode every file once; (the pairs whose picture is good, their pictures or None if they need more than KEPT_BYTES)."""
    paths = list(dict.fromkeys(pair.path for pair in pairs))
    lock = threading.Lock()
    needed = 0

    def fits(size: int) -> bool:
        """Counts `size` bytes; false from the picture on with which all so far need more than KEPT_BYTES."""
        nonlocal needed
        with lock:
            needed += size
            return needed <= KEPT_BYTES

    def check(path: Path) -> np.ndarray | DataError | None:
        try:
            image = transforms.decode(path, max_pixels=config.max_pixels, max_side=2 * config.image_size)
        except DataError as error:
            return error
        return image if fits(image.nbytes) else None

    images: dict[Path, np.ndarray] = {}
    errors: dict[Path, DataError] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        results = track(pool.map(check, paths), "checking pictures", total=len(paths), disable=len(paths) < 1000)
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, DataError):
                errors[path] = result
                if config.on_error == "raise":
                    pool.shutdown(cancel_futures=True)
                    break
            elif result is not None:
                images[path] = result
            else:
                images.clear()
    for pair in pairs:
        if (error := errors.get(pair.path)) is not None:
            found = f"image {pair.path}: {error}"
            skips.record(ManifestError(manifest, pair.row, found, "replace the file or remove the row", kind=error.kind))
    good = [pair for pair in pairs if pair.path not in errors]
    return good, [images[pair.path] for pair in good] if needed <= KEPT_BYTES else None


def _warn_of_leaks(manifest: Path, pairs: Sequence[Pair]) -> None:
    trained = {pair.anchor_key for pair in pairs if pair.split == "train"}
    leaked = sorted({pair.anchor_key for pair in pairs if pair.split != "train"} & trained)
    if leaked:
        log.warning("%s: %d images are both in training and in a hold-out, such as %r", manifest, len(leaked), leaked[0])


@dataclasses.dataclass(frozen=True)
class _Bad:
    """Stands for the fields of a row that a reader could not take apart."""

    found: str
    remedy: str
    kind: str


_Fields = dict[str, object]  # column -> str, bytes, int or None when it is good


def _need(manifest: Path, columns: Sequence[str], found: Sequence[str]) -> None:
    for column in columns:
        if list(found).count(column) != 1:
            raise ManifestError(
                manifest,
                None,
                f"column {column!r} occurs {list(found).count(column)} times; found: {', '.join(map(repr, found)) or 'none'}",
                "name the columns in data.image_column, data.caption_column, data.id_column, data.split_column",
                kind="columns",
            )


def _read_csv(manifest: Path, columns: Sequence[str]) -> Iterator[_Fields]:
    """Empty lines do not count as rows. Broken quoting, or a field above FIELD_CHARS, stops the reading, for where the next row
    starts is then unknown."""
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_CHARS))  # holds for the whole process
    row = -1  # the last one read; 0 is the header
    with open(manifest, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            row = 0
            if any("\udc80" <= character <= "\udcff" for character in "".join(header)):
                raise ManifestError(manifest, None, "the header line is not UTF-8", "save the file as UTF-8", kind="encoding")
            _need(manifest, columns, header)
            for record in reader:
                row += bool(record)
                if len(record) == len(header):
                    yield {column: record[header.index(column)] for column in columns}
                elif record:
                    bad = _Bad(f"{len(record)} fields, the header has {len(header)}", "quote a field that holds commas", "columns")
                    yield dict.fromkeys(columns, bad)
        except csv.Error as error:
            if "field limit" in str(error):
                found = f"a field has more than {csv.field_size_limit():,} characters (line {reader.line_num})"
                remedy = "shorten it, or close the quote that was left open"
                raise ManifestError(manifest, row + 1 or None, found, remedy, kind="syntax") from error
            raise ManifestError(manifest, None, f"line {reader.line_num}: {error}", "correct the quoting", kind="syntax") from error


def _read_jsonl(manifest: Path, columns: Sequence[str]) -> Iterator[_Fields]:
    """Every line is a row."""
    with open(manifest, "rb") as file:
        for line in file:
            yield _json_fields(line.removeprefix(b"\xef\xbb\xbf"), columns)


def _json_fields(line: bytes, columns: Sequence[str]) -> _Fields:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return dict.fromkeys(columns, _Bad("the line is not UTF-8", "save the file as UTF-8", "encoding"))
    except (ValueError, RecursionError) as error:
        return dict.fromkeys(columns, _Bad(f"the line is not JSON ({error})", "write one object a line", "syntax"))
    missing = [column for column in columns if column not in record] if isinstance(record, dict) else columns
    if missing:
        return dict.fromkeys(
            columns, _Bad(f"no field {', '.join(map(repr, missing))}", "write one object a line, with all fields", "columns")
        )
    return {column: record[column] for column in columns}


def _read_parquet(manifest: Path, columns: Sequence[str]) -> Iterator[_Fields]:
    try:
        with open(manifest, "rb") as raw, pq.ParquetFile(raw) as file:
            _need(manifest, columns, file.schema_arrow.names)
            for batch in file.iter_batches(columns=list(columns)):
                values = [_as_bytes(batch.column(column)).to_pylist() for column in columns]
                yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))
    except (pa.ArrowException, ValueError, OSError) as error:
        from_system = isinstance(error, OSError) and error.errno is not None  # Arrow's OSError for corrupt data has no number
        if isinstance(error, ManifestError) or from_system:
            raise
        raise ManifestError(manifest, None, f"not a readable Parquet file ({error})", "write it again", kind="syntax") from error


def _as_bytes(column: pa.Array) -> pa.Array:
    """Texts as bytes, so that each value is decoded, and can fail, on its own."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type)
    return column.cast(pa.large_binary()) if is_text else column


_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[_Fields]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
