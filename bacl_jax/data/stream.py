"""Data sets too large to look at row by row beforehand: stored pictures and captions, read when a batch needs them.

Dimension legend: n rows in all, of which H are kept out of training, for validation and test; N rows of one of these.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int64
from rich.progress import track

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import order, transforms
from bacl_jax.data.captions import normal
from bacl_jax.data.halftrue import HalfTrueIndex
from bacl_jax.data.source import DataSet, EvalSplit, Example, OnSkip, check_train_rows
from bacl_jax.errors import DataError

T = TypeVar("T")
_THREADS = 16  # that read rows before a run
_SHOWN = 1000  # rows from which on their reading has a progress bar
_SAMPLE = 20_000  # rows whose captions a tokenizer is trained on


@dataclasses.dataclass(frozen=True)
class Record:
    """One row as it is stored.

    image:    the encoded picture (JPEG, PNG, WebP, ...), whole and not looked at.
    captions: as stored, one or more.
    key:      names the source image: rows with one key hold the same picture.
    shard:    the file that holds it; says where a bad picture is.
    """

    image: bytes
    captions: tuple[str, ...]
    key: str
    shard: str = dataclasses.field(default="", compare=False)


@runtime_checkable
class Records(Protocol):
    """Random access to stored rows. `records[i]` is thread safe, opens files when it needs them, and is a pure function of i in [0, len).

    It raises DataError with `kind` (one of docs/data.md) and `shard` (the file that holds the row) where the row cannot be used.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclasses.dataclass(frozen=True)
class FileRecords:
    """Records whose pictures are files of their own; what a manifest or the emoji are converted from."""

    paths: Sequence[Path]
    captions: Sequence[str]
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        """Raises DataError of kind "missing" for a file that cannot be read."""
        path = self.paths[index]
        try:
            return Record(path.read_bytes(), (self.captions[index],), self.keys[index], str(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}); restore it", kind="missing", shard=str(path)) from error


@dataclasses.dataclass(frozen=True)
class AllBut:
    """0 ... n - 1 without the rows `left_out` (sorted): `self[i]` is the i-th of the rest. No table, so that n may be large."""

    n: int
    left_out: Int64[np.ndarray, " H"]

    def __len__(self) -> int:
        return self.n - len(self.left_out)

    def __getitem__(self, index: int) -> int:
        """Raises IndexError outside [0, len)."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return index + int(np.searchsorted(self._rank, index, side="right"))

    @functools.cached_property
    def _rank(self) -> Int64[np.ndarray, " H"]:
        """How many rows stay before each one left out."""
        return self.left_out - np.arange(len(self.left_out))


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """Rows of `records` as examples, whose pictures are decoded when they are looked at. rows: their numbers in `records`."""

    records: Records
    config: DataConfig
    rows: AllBut | Int64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> int:
        """Number of the row in `records`."""
        return int(self.rows[index])

    def __getitem__(self, index: int) -> Example:
        record = self.records[self.row(index)]
        caption, *others = captions_of(record, self.config)
        picture = transforms.Encoded(record.image, record.key, record.shard, self.config.max_pixels, 2 * self.config.image_size)
        return Example(picture, caption, record.key, tuple(others), record.shard)


def captions_of(record: Record, config: DataConfig) -> list[str]:
    """The record's captions, cleaned (data.clean_captions) and normalised. DataError where nothing that can be read is left of any."""
    found = [caption for text in record.captions if (caption := normal(text, cleaned=config.clean_captions))]
    if not found:
        raise DataError(f"{record.key}: the caption is empty", kind="empty_caption", shard=record.shard)
    return found


@dataclasses.dataclass(frozen=True)
class RecordSet(DataSet):
    """A data set over Records; `train_caption` is None."""

    def training_captions(self) -> list[str]:
        """Captions of 20,000 training rows, or of all where there are fewer. A row that cannot be read is left out here."""
        source = self.train
        assert isinstance(source, RecordSource)

        def captions(index: int) -> list[str]:
            try:
                return captions_of(source.records[source.row(index)], source.config)
            except DataError:
                return []

        rows = np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(np.int64).tolist()
        return [caption for found in _each(captions, rows, "reading captions for the tokenizer") for caption in found]


def _each(function: Callable[[int], T], rows: Sequence[int], what: str) -> Iterator[T]:
    """function(row) of each row, in their order, by many threads: rows that are far away take their time. A progress bar for many."""
    threads = ThreadPoolExecutor(_THREADS)
    try:
        yield from track(threads.map(function, rows), what, total=len(rows), disable=len(rows) < _SHOWN)
    finally:
        threads.shutdown(cancel_futures=True)


def assemble(records: Records, config: DataConfig, *, name: str, on_skip: OnSkip | None = None) -> DataSet:
    """The data set over `records`: data.validation_rows and data.test_rows of them, drawn by data.holdout_seed, are kept out of training.

    Of the others data.train_rows are used, where that is set (8 bytes and 2 us each). Reads the held-out rows, and no other.
    Raises DataError for one that cannot be used; with data.on_error = "skip" it is left out,
    counted in `DataSet.skipped` and passed to `on_skip`. ConfigError where no row is left for training.
    """
    n, held = len(records), {"validation": config.validation_rows, "test": config.test_rows}
    count = n - sum(held.values())
    if count < 1:
        raise ConfigError(
            f"data.validation_rows + data.test_rows = {sum(held.values())}: {name} has {n:,} rows in all, and one must be left to train on"
        )
    drawn = order.permuted([config.holdout_seed], n, range(count, n))
    training: AllBut | Int64[np.ndarray, " N"] = AllBut(n, np.sort(drawn))
    if config.train_rows is not None:
        check_train_rows(config.train_rows, count, name)
        count = config.train_rows
        training = np.sort(order.permuted([config.holdout_seed], n, range(count)))
    skipped: Counter[str] = Counter()
    splits: dict[str, tuple[_Kept, list[str]]] = {}
    for split, rows in (("validation", drawn[: held["validation"]]), ("test", drawn[held["validation"] :])):
        splits[split] = _read(RecordSource(records, config, rows), config, skipped, on_skip)
    captions = tuple(sorted({caption for _, texts in splits.values() for caption in texts}))
    position = {caption: i for i, caption in enumerate(captions)}
    return RecordSet(
        name=name,
        description=f"{name}, {n:,} pairs (train {count:,}, validation {held['validation']:,}, test {held['test']:,})",
        train=RecordSource(records, config, training),
        train_caption=None,
        splits={split: EvalSplit(kept, np.array([position[text] for text in texts], np.int64)) for split, (kept, texts) in splits.items()},
        captions=captions,
        half_true=HalfTrueIndex(captions),
        skipped=dict(skipped),
    )


@dataclasses.dataclass(frozen=True)
class _Kept:
    """The rows of a source that could be read."""

    source: RecordSource
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.source[self.rows[index]]


def _read(source: RecordSource, config: DataConfig, skipped: Counter[str], on_skip: OnSkip | None) -> tuple[_Kept, list[str]]:
    """The held-out rows that can be read, and the first caption of each."""

    def caption(index: int) -> str | DataError:
        try:
            return source[index].decoded().caption
        except DataError as error:
            return error

    rows, captions = [], []
    for index, found in enumerate(_each(caption, range(len(source)), "reading held-out rows")):
        if isinstance(found, DataError):
            if config.on_error == "raise":
                raise found
            skipped[found.kind] += 1
            if on_skip is not None:
                on_skip(found)
        else:
            rows.append(index)
            captions.append(found)
    return _Kept(source, tuple(rows)), captions
