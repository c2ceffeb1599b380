"""Parquet files whose rows hold encoded pictures and captions: img2dataset's Parquet output, Hugging Face's image columns, plain tables.

    image    binary, or a struct with a binary field `bytes` (Hugging Face writes {bytes, path})
    caption  a text, or a list of texts
    key      optional: a text or a whole number; rows with one key hold the same picture

Dimension legend: n rows, G row groups of all files.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from bacl_jax.data import files, storage
from bacl_jax.data.cache import Cache
from bacl_jax.data.source import OnSkip
from bacl_jax.data.stream import Record
from bacl_jax.errors import DataError

CACHE_BYTES = 512 * 2**20
_FOOTER_THREADS = 16
_PROGRESS_FROM = 100  # files
_DAMAGE = (pa.ArrowException, ValueError, OSError, MemoryError, OverflowError, EOFError)  # what pyarrow raises for bad bytes


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Names of the columns; key may be None."""

    image: str
    caption: str
    key: str | None


class ParquetFiles:
    """Rows of one or many Parquet files in the path's order (bacl_jax.data.stream.Records).

    `path` is what bacl_jax.data.files.expand takes: a file, a folder, a pattern, braces, a URL. A row without a key gets
    "<file>#<row>" as one, with the file's name below the folder that holds all of them.

    Cost: opening reads the footers, in 16 threads. A look-up reads the whole row group of the row (only the columns named) unless it is
    among those kept, of which there are `cache_bytes` at most, and the newest. So a true global shuffle reads a row group for each row;
    a block shuffle, whose windows hold a few row groups at a time, reads each once. img2dataset and Hugging Face write 100 rows a group.

    Page checksums are verified where the file has them (write_page_checksum=True in pyarrow); elsewhere a flipped bit inside a
    picture shows only when the picture is decoded, if at all.

    Raises DataError with file and row (the first is 1) named. Kinds: missing (no such file, a null picture), syntax (damaged), columns
    (absent, or of another type), encoding, empty_caption (null, or a list without texts), empty (no row in all files); remote and those
    of `files.expand`.
    """

    def __init__(
        self,
        path: str,
        image_column: str,
        caption_column: str,
        key_column: str | None = None,
        *,
        cache_bytes: int = CACHE_BYTES,
        on_skip: OnSkip | None = None,
    ) -> None:
        """on_skip: called with the error of each file that is left out whole, its footer being unusable; None raises the first one."""
        self._columns = _Columns(image_column, caption_column, key_column)
        self._files, groups = _read_footers(files.expand(path, ".parquet"), self._columns, on_skip)
        self._names = files.below_common_folder(self._files)
        self._group_file = np.repeat(np.arange(len(groups)), [len(rows) for rows in groups])  # [G]
        self._group_in_file = np.array([group for rows in groups for group in range(len(rows))], np.int64)  # [G]
        self._group_end = np.cumsum([count for rows in groups for count in rows], dtype=np.int64)  # [G]
        self._file_start = np.cumsum([0, *map(sum, groups)], dtype=np.int64)
        if len(self) == 0:
            raise DataError(f"{path}: no row in {len(self._files)} readable Parquet files", kind="empty", shard=path)
        self._cache: Cache[pa.Table] = Cache(cache_bytes)

    def __len__(self) -> int:
        return int(self._file_start[-1])

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        group = int(np.searchsorted(self._group_end, index, side="right"))
        file = int(self._group_file[group])
        start = int(self._group_end[group - 1]) if group else 0
        table = self._cache.get(group, lambda: self._read_group(group))
        row = index - int(self._file_start[file])
        cells = {part: table[part][index - start] for part in table.column_names}
        return _record(self._files[file], row, cells, self._columns, f"{self._names[file]}#{row}")

    def _read_group(self, group: int) -> tuple[pa.Table, int]:
        """(the named columns of a row group, their bytes in memory); the picture of a struct is its field `bytes`."""
        file, in_file = self._files[self._group_file[group]], int(self._group_in_file[group])
        rows = int(self._group_end[group] - (self._group_end[group - 1] if group else 0))
        with _opened(file, f"row group {in_file}") as parquet:
            leaf = _image_leaf(file, parquet.schema_arrow, self._columns)
            if in_file >= parquet.num_row_groups:
                raise _damaged(file, f"row group {in_file}", f"the file has only {parquet.num_row_groups} by now")
            caption, key = self._columns.caption, self._columns.key
            found = parquet.read_row_group(in_file, columns=[leaf, caption, *filter(None, [key])])
            found.validate()
            if found.num_rows != rows:
                raise _damaged(file, f"row group {in_file}", f"{found.num_rows} rows, the footer said {rows}")
            pictures = found[self._columns.image]
            if leaf != self._columns.image:
                pictures = pa.chunked_array([chunk.flatten()[0] for chunk in pictures.chunks], pictures.type.field("bytes").type)
            table = pa.table({"image": pictures, "caption": found[caption], **({"key": found[key]} if key else {})})
        return table, table.nbytes


def _read_footers(names: list[str], columns: _Columns, on_skip: OnSkip | None) -> tuple[list[str], list[list[int]]]:
    """(the usable files, of each the rows of its row groups)."""

    def read(name: str) -> list[int] | DataError:
        try:
            return _read_footer(name, columns)
        except DataError as error:
            if on_skip is None:
                raise
            return error

    with ThreadPoolExecutor(min(_FOOTER_THREADS, len(names))) as pool:
        results = pool.map(read, names)
        try:
            found = list(track(results, "reading footers", total=len(names), transient=True, disable=len(names) < _PROGRESS_FROM))
        except DataError:
            pool.shutdown(cancel_futures=True)
            raise
    for each in found:
        if isinstance(each, DataError) and on_skip is not None:
            on_skip(each)
    good = [(name, rows) for name, rows in zip(names, found, strict=True) if not isinstance(rows, DataError)]
    return [name for name, _ in good], [rows for _, rows in good]


def _read_footer(file: str, columns: _Columns) -> list[int]:
    """The rows of each row group, after a check that the footer does not contradict itself.

    The metadata of a column is not asked for: where it is damaged, pyarrow 26 ends the process there. Reading a row group raises.
    """
    with _opened(file, "footer") as parquet:
        _image_leaf(file, parquet.schema_arrow, columns)
        footer = parquet.metadata
        rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        if min(rows, default=0) < 0 or sum(rows) != footer.num_rows:
            raise _damaged(file, "footer", f"{footer.num_rows} rows in all, but {sum(rows)} in its {len(rows)} row groups")
        return rows


def _damaged(file: str, part: str, found: object) -> DataError:
    return DataError(f"{file}, {part}: not readable as Parquet ({found}); write the file again", kind="syntax", shard=file)


@contextlib.contextmanager
def _opened(file: str, part: str) -> Iterator[pq.ParquetFile]:
    """The file, its checksums verified as it is read; what goes wrong inside is a DataError that names the file and the part."""
    try:
        remote = storage.is_remote(file)
        # A native file: as fast as a memory map, which would end the process where a file is cut while it is read.
        with (
            storage.RemoteFile(file) if remote else pa.OSFile(file, "rb") as raw,
            pq.ParquetFile(raw, page_checksum_verification=True, pre_buffer=remote) as parquet,
        ):
            yield parquet
    except DataError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, (TimeoutError, FileNotFoundError))):
            raise DataError(f"{file}, {part}: cannot be read ({error})", kind="missing", shard=file) from error
        raise _damaged(file, part, error) from error  # Arrow's own OSError, for corrupt data, has no number


def _image_leaf(file: str, schema: pa.Schema, columns: _Columns) -> str:
    """The path of the column with the pictures' bytes, after a check of all columns' types."""
    for name in filter(None, [columns.image, columns.caption, columns.key]):
        if schema.names.count(name) != 1:
            found = f"column {name!r} occurs {schema.names.count(name)} times; found: {', '.join(map(repr, schema.names)) or 'none'}"
            raise DataError(f"{file}: {found}; name the columns of picture, caption and key", kind="columns", shard=file)
    image, caption = schema.field(columns.image).type, schema.field(columns.caption).type
    field = image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else None
    _expect(file, columns.image, image, _is_binary(field or image), "binary, or a struct with a binary field 'bytes'")
    _expect(file, columns.caption, caption, _is_text(caption.value_type if _is_list(caption) else caption), "a text, or a list of texts")
    if columns.key:
        key = schema.field(columns.key).type
        _expect(file, columns.key, key, _is_text(key) or pa.types.is_integer(key), "a text or a whole number")
    return columns.image if field is None else f"{columns.image}.bytes"


def _expect(file: str, column: str, found: pa.DataType, good: bool, expected: str) -> None:
    if not good:
        raise DataError(f"{file}: column {column!r} holds {found}; expected {expected}", kind="columns", shard=file)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _record(file: str, row: int, cells: dict[str, pa.Scalar], columns: _Columns, name: str) -> Record:
    """The Record of a row's cells; `row` counts from 0 in its file, `name` is the key of a row that has none."""

    def bad(found: str, kind: str) -> DataError:
        return DataError(f"{file}, row {row + 1}: {found}", kind=kind, shard=file)

    values = {}
    for part, cell in cells.items():
        try:
            values[part] = cell.as_py()
        except UnicodeDecodeError as error:
            raise bad(f"column {getattr(columns, part)!r} is not UTF-8 ({error}); save it as UTF-8", "encoding") from error
    image, caption, key = values["image"], values["caption"], values.get("key")
    if image is None:
        raise bad(f"the picture (column {columns.image!r}) is null; bytes must lie in the file, a path alone is not read", "missing")
    captions = (caption,) if isinstance(caption, str) else tuple(text for text in caption or () if text is not None)
    if not captions:
        raise bad(f"no caption (column {columns.caption!r} holds {caption!r})", "empty_caption")
    return Record(image, captions, name if key is None or key == "" else str(key), file)
