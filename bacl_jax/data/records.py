"""Reads a manifest's rows: CSV (a header line, UTF-8, comma), JSONL (one object a line, UTF-8) or Parquet (text columns).

The file's ending chooses the reader. A row that cannot be taken apart carries its error in its fields, so that
reading goes on; `text` raises it.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bacl_jax.errors import DataError

FIELD_CHARS = 2**24  # the longest field of a CSV file; the csv module's own limit, 131,072, is lower


class ManifestError(DataError):
    """A manifest, or one row of it, that cannot be used: the file, the row (the first data row is 1; None: the file as a whole), what
    was found, and the remedy."""

    def __init__(self, manifest: Path, row: int | None, found: str, remedy: str, *, kind: str):
        where = f"{manifest}" if row is None else f"{manifest}, data row {row}"
        super().__init__(f"{where}: {found}; {remedy}", kind=kind)
        self.manifest, self.row = manifest, row


@dataclasses.dataclass(frozen=True)
class _Bad:
    """Stands for the fields of a row that a reader could not take apart."""

    found: str
    remedy: str
    kind: str


Fields = dict[str, object]  # column -> str, bytes, int or None when it is good
Reader = Callable[[Path, Sequence[str]], Iterator[Fields]]


def read(manifest: Path, columns: Sequence[str], further: Mapping[str, Reader] | None = None) -> Iterator[tuple[int, Fields]]:
    """(row, its fields in `columns`) for each row of the file, from 1. ManifestError for what concerns the whole file.

    further: readers of endings beside .csv, .jsonl and .parquet.
    """
    readers = _READERS | dict(further or {})
    reader = readers.get(manifest.suffix.lower())
    if reader is None:
        raise ManifestError(manifest, None, f"unknown type {manifest.suffix!r}", f"use one of {', '.join(readers)}", kind="type")
    try:
        yield from enumerate(reader(manifest, columns), start=1)
    except OSError as error:
        raise ManifestError(manifest, None, f"cannot be read ({error})", "correct data.path", kind="missing") from error


def text(manifest: Path, row: int, column: str, value: object) -> str:
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


def _need(manifest: Path, columns: Sequence[str], found: Sequence[str]) -> None:
    for column in columns:
        if list(found).count(column) != 1:
            raise ManifestError(
                manifest,
                None,
                f"column {column!r} occurs {list(found).count(column)} times; found: {', '.join(map(repr, found)) or 'none'}",
                "name the columns in data.image_column, data.caption_column, data.id_column, data.split_column, data.clips",
                kind="columns",
            )


def _read_csv(manifest: Path, columns: Sequence[str]) -> Iterator[Fields]:
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


def _read_jsonl(manifest: Path, columns: Sequence[str]) -> Iterator[Fields]:
    """Every line is a row; blank lines at the end are none."""
    blank: list[bytes] = []
    with open(manifest, "rb") as file:
        for line in file:
            if not line.strip():
                blank.append(line)
                continue
            for one in (*blank, line):
                yield _json_fields(one.removeprefix(b"\xef\xbb\xbf"), columns)
            blank.clear()


def _json_fields(line: bytes, columns: Sequence[str]) -> Fields:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return dict.fromkeys(columns, _Bad("the line is not UTF-8", "save the file as UTF-8", "encoding"))
    except (ValueError, RecursionError) as error:
        return dict.fromkeys(columns, _Bad(f"the line is not JSON ({error})", "write one object a line", "syntax"))
    return _fields_of(record, columns, "write one object a line, with all fields")


def _fields_of(record: object, columns: Sequence[str], remedy: str) -> Fields:
    missing = [column for column in columns if column not in record] if isinstance(record, dict) else columns
    if missing or not isinstance(record, dict):
        return dict.fromkeys(columns, _Bad(f"no field {', '.join(map(repr, missing))}", remedy, "columns"))
    return {column: record[column] for column in columns}


def read_json(manifest: Path, columns: Sequence[str]) -> Iterator[Fields]:
    """A list of objects, read whole."""
    try:
        content = json.loads(manifest.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ManifestError(manifest, None, f"not JSON ({error})", "write a list of objects, in UTF-8", kind="syntax") from error
    if not isinstance(content, list):
        raise ManifestError(manifest, None, f"a {type(content).__name__}", "write a list of objects", kind="syntax")
    for record in content:
        yield _fields_of(record, columns, "write objects with all fields")


def _read_parquet(manifest: Path, columns: Sequence[str]) -> Iterator[Fields]:
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


_READERS: dict[str, Reader] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
