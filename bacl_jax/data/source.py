"""What every data set looks like to the rest of the project, whatever it was read from.

Dimension legend: n rows of the training source, N rows of an evaluation split, B rows of a batch.
"""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int16, UInt8, UInt32

from bacl_jax.config import ConfigError
from bacl_jax.data.halftrue import HalfTrueIndex
from bacl_jax.data.order import permuted
from bacl_jax.errors import DataError

SPLITS = ("validation", "test")


OnSkip = Callable[[DataError], None]  # called once for each row that is left out under data.on_error = "skip"


@runtime_checkable
class Picture(Protocol):
    """A picture that is decoded when it is looked at. Both raise DataError where it cannot be."""

    def whole(self) -> UInt8[np.ndarray, "h w 3"]: ...

    def crop(self, size: int, where: Callable[[int, int], Any], resample: Any) -> UInt8[np.ndarray, "S S 3"]: ...


@runtime_checkable
class Sound(Protocol):
    """A sound that is decoded when it is listened to. Raises DataError where it cannot be."""

    def samples(self, rate: int, seconds: float, where: float) -> Int16[np.ndarray, " n"]:
        """At most so many seconds, mono, `rate` samples each; where, in [0, 1]: which part of a longer sound, by its place."""
        ...


@runtime_checkable
class Clip(Protocol):
    """A clip whose frames are decoded when they are looked at. Raises DataError where they cannot be."""

    def frames(self, places: Sequence[float]) -> list[UInt8[np.ndarray, "h w 3"]]:
        """The frames at these places of the clip, each in [0, 1), in ascending order."""
        ...


@dataclasses.dataclass(frozen=True)
class Example:
    """One row: a caption, and what it is about.

    picture:    uint8 [h, w, 3], any size, or how it is stored; None where the row has none.
    caption:    normalised (`normalise`); empty where the row has none.
    anchor_key: names the source image; rows with one key hold the same image.
    others:     further captions of the same image, normalised; training draws one of them all.
    shard:      the file that holds the row, where rows share files.
    truth:      normalised; the caption that a picture without one truly has, where that is known: for metrics alone.
    sound, clip: what is heard and what moves; None where the row has none.
    label:      its class, for the task `fusion`; empty where it has none.
    """

    picture: UInt8[np.ndarray, "h w 3"] | Picture | None
    caption: str
    anchor_key: str
    others: tuple[str, ...] = ()
    shard: str = ""
    truth: str = ""
    sound: Sound | None = None
    clip: Clip | None = None
    label: str = ""

    @property
    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """The whole picture, decoded at each call where it is stored. Raises DataError where it cannot be, or there is none."""
        if self.picture is None:
            raise DataError(f"the row of the caption {self.caption!r} has no picture", kind="missing")
        return self.picture.whole() if isinstance(self.picture, Picture) else self.picture

    def decoded(self) -> "Example":
        """The same with its pixels. Raises DataError where the picture cannot be decoded."""
        return dataclasses.replace(self, picture=self.image)


@runtime_checkable
class Source(Protocol):
    """Random access to pairs; `source[i]` is thread safe and a pure function of i in [0, len)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Decoded images held in memory, one of each row. truths: as in Example, of each row where there are any."""

    images: Sequence[np.ndarray | None]
    captions: Sequence[str]
    anchor_keys: Sequence[str]
    truths: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        truth = self.truths[index] if self.truths else ""
        return Example(self.images[index], self.captions[index], self.anchor_keys[index], truth=truth)


@dataclasses.dataclass(frozen=True)
class EvalSplit:
    """Rows kept out of training; one row an image, and `caption[i]` is the row of `DataSet.captions` that describes it."""

    source: Source
    caption: Int[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the sources that a training source consists of: so many of its rows, and its weight in each batch beside the others'.

    beside: its rows stand in the same places of a batch as those of the part before it. start: its first row; None: it follows the parts
    before it.
    """

    name: str
    rows: int
    weight: float = 1.0
    beside: bool = False
    start: int | None = None


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A training source and its hold-outs.

    train_caption: row -> index into `captions`; None where rows are read only as they are needed: `captions` are then the hold-outs'.
    splits:        "validation" and "test", always both; a split nobody defined has zero rows.
    captions:      the distinct captions of all splits, normalised, sorted.
    half_true:     index over `captions`.
    skipped:       rows left out, counted by kind.
    description:   one line for logs and reports: what was read, and how much of it.
    left_out:      the error of each row or file that was left out when the data were opened.
    """

    name: str
    description: str
    train: Source
    train_caption: Int[np.ndarray, " n"] | None
    splits: dict[str, EvalSplit]
    captions: tuple[str, ...]
    half_true: HalfTrueIndex
    skipped: dict[str, int]
    left_out: tuple[DataError, ...] = ()

    def parts(self) -> tuple[Part, ...]:
        """The sources that `train` consists of, in its order; each is shuffled on its own. A single one needs no name."""
        return (Part("", len(self.train)),)

    def complete(self) -> Source:
        """The training rows that have a picture and a caption."""
        return self.train

    def left_out_by_part(self) -> dict[str, tuple[DataError, ...]]:
        """`left_out`, by the name of the part."""
        return {"": self.left_out}

    def training_captions(self) -> list[str]:
        """What a tokenizer is trained on: the caption of each training row."""
        assert self.train_caption is not None
        return [self.captions[i] for i in self.train_caption]


def normalise(caption: str) -> str:
    """Unicode NFC, lower case, single spaces: two captions are the same one when their normal forms are equal."""
    return " ".join(unicodedata.normalize("NFC", caption).lower().split())


def hash_ids(keys: Iterable[str]) -> UInt32[np.ndarray, "B 2"]:
    """64-bit BLAKE2b of each key as two uint32 (low word first); a function of the text alone, the same on every host and in every run.

    Among m keys the chance of any collision is about m^2 / 2^65.
    """
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, "<u4").astype(np.uint32).reshape(-1, 2)


def check_train_rows(wanted: int, there: int, description: str) -> None:
    """ConfigError where data.train_rows is more than the data have."""
    if wanted > there:
        raise ConfigError(f"config.data.train_rows = {wanted}: must be at most {there}, the rows for training of {description}, or None")


def assemble(
    *,
    name: str,
    description: str,
    make_source: Callable[[Sequence[int]], Source],
    row_captions: Sequence[str],
    row_splits: Sequence[str],
    skipped: dict[str, int],
    train_rows: int | None = None,
    seed: int = 0,
) -> DataSet:
    """Split rows 0 .. len - 1 into train, validation and test, in their order.

    train_rows: of the rows for training, so many are used, drawn by `seed`; None: all.

    make_source(rows) gives the source that holds those rows; `row_captions` are normalised, and empty where a row has none: its caption
    index is then -1; `row_splits` holds "train", "validation" or "test". Raises DataError when no row is left for training,
    ConfigError when there are fewer than `train_rows`.
    """
    captions = tuple(sorted(set(row_captions) - {""}))
    position = {caption: i for i, caption in enumerate(captions)} | {"": -1}
    rows_of: dict[str, list[int]] = {split: [] for split in ("train", *SPLITS)}
    for row, split in enumerate(row_splits):
        rows_of[split].append(row)
    if not rows_of["train"]:
        raise DataError(f"{name}: no row is left for training ({description}; left out: {skipped or 'nothing'})", kind="empty")

    if train_rows is not None:
        check_train_rows(train_rows, len(rows_of["train"]), description)
        rows_of["train"] = [rows_of["train"][i] for i in np.sort(permuted([seed], len(rows_of["train"]), range(train_rows)))]

    def caption_rows(rows: list[int]) -> np.ndarray:
        return np.array([position[row_captions[row]] for row in rows], np.int64)

    return DataSet(
        name=name,
        description=description + ("" if train_rows is None else f", {train_rows:,} of them for training"),
        train=make_source(rows_of["train"]),
        train_caption=caption_rows(rows_of["train"]),
        splits={split: EvalSplit(make_source(rows_of[split]), caption_rows(rows_of[split])) for split in SPLITS},
        captions=captions,
        half_true=HalfTrueIndex(captions),
        skipped=skipped,
    )
