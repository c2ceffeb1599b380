"""Rows with pictures, sounds and clips as a data set: what the run's anchors need is decoded once and kept, where it fits into memory.

Dimension legend: n rows.
"""

import dataclasses
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.progress import track

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import order, transforms
from bacl_jax.data.audio import Heard, SoundFile
from bacl_jax.data.inputs import is_lacking
from bacl_jax.data.skips import Skips
from bacl_jax.data.source import SPLITS, Clip, DataSet, Example, Picture, Sound, assemble
from bacl_jax.data.video import Seen
from bacl_jax.errors import DataError

KEPT_BYTES = 1024 * 2**20  # decoded media are kept in memory when they all fit into this
_THREADS = min(8, os.cpu_count() or 1)
_SHOWN = 1000  # rows from which on the decoding has a progress bar
ANCHORS = {"image": "picture", "audio": "sound", "video": "clip"}  # anchor -> its field of a row and of an Example


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One row, nothing of it decoded; None: it has none of that."""

    key: str
    caption: str
    split: str
    picture: Picture | np.ndarray | None = None
    sound: Sound | None = None
    clip: Clip | None = None
    label: str = ""
    others: tuple[str, ...] = ()

    def has(self, anchor: str) -> bool:
        return getattr(self, ANCHORS[anchor]) is not None


@dataclasses.dataclass(frozen=True)
class RowSource:
    """Rows as a source."""

    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        found = {name: getattr(row, name) for name in ANCHORS.values()}
        return Example(caption=row.caption, anchor_key=row.key, others=row.others, label=row.label, **found)


@dataclasses.dataclass(frozen=True, slots=True)
class PictureFile(Picture):
    """A picture file, read and decoded when it is looked at."""

    path: str
    max_pixels: int
    max_side: int

    def whole(self) -> UInt8[np.ndarray, "h w 3"]:
        return self._read().whole()

    def crop(self, size: int, where: Callable[[int, int], Any], resample: Any) -> UInt8[np.ndarray, "S S 3"]:
        return self._read().crop(size, where, resample)

    def _read(self) -> transforms.Encoded:
        try:
            return transforms.Encoded(Path(self.path).read_bytes(), self.path, self.path, self.max_pixels, self.max_side)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error})", kind="missing", shard=self.path) from error


def picture(path: str | Path, config: DataConfig) -> Picture:
    """A picture file; looked at whole, it is shrunk to twice data.image_size."""
    return PictureFile(str(path), config.max_pixels, 2 * config.image_size)


def sound(path: str | Path, config: DataConfig) -> Sound:
    """A sound file, read and decoded when it is listened to."""
    return SoundFile(str(path), config.audio.max_seconds)


def held_out(captions: Sequence[str], config: DataConfig) -> dict[str, str]:
    """caption -> "validation" or "test" for data.validation_captions and data.test_captions of the distinct ones, drawn by holdout_seed."""
    distinct = sorted(set(captions))
    sizes = (config.validation_captions, config.test_captions)
    if sum(sizes) >= len(distinct):
        raise ConfigError(
            f"config.data.validation_captions + config.data.test_captions = {sum(sizes)}: must be less than {len(distinct)}, "
            "the distinct captions"
        )
    drawn = order.permuted([config.holdout_seed], len(distinct), range(sum(sizes)))
    return {distinct[at]: SPLITS[number >= sizes[0]] for number, at in enumerate(drawn.tolist())}


def decoded(row: Row, config: DataConfig) -> Row:
    """The row with what the run's anchors need of it decoded: pictures and frames shrunk, sounds at data.audio.rate. Raises DataError."""
    audio, places = config.audio, np.linspace(0, 1, 4 * config.video.frames, endpoint=False).tolist()
    makers: dict[str, Callable[[Any], Any]] = {
        "image": lambda picture: picture.whole() if isinstance(picture, Picture) else picture,
        "audio": lambda sound: Heard(sound.samples(audio.rate, audio.max_seconds, 0.5), audio.rate),
        "video": lambda clip: Seen(clip.frames(places)),
    }
    found: dict[str, Any] = {}
    for anchor in filter(row.has, config.anchors):
        name = ANCHORS[anchor]
        try:
            found[name] = makers[anchor](getattr(row, name))
        except DataError as error:
            if not is_lacking(error, config):
                raise
            found[name] = None
    return dataclasses.replace(row, **found)


def size_of(row: Row) -> int:
    """Bytes of what is decoded of a row."""
    frames = row.clip.values if isinstance(row.clip, Seen) else ()
    values = row.sound.values.nbytes if isinstance(row.sound, Heard) else 0
    pixels = row.picture.nbytes if isinstance(row.picture, np.ndarray) else 0
    return pixels + values + sum({id(frame): frame.nbytes for frame in frames}.values())


def check(rows: Sequence[Row], config: DataConfig, skips: Skips, *, which: Callable[[Row], bool]) -> list[Row]:
    """The rows that are good: those of `which` are decoded once, and kept so while they need at most KEPT_BYTES in all; others are
    not looked at. A bad one is raised, or with data.on_error = "skip" left out and counted."""
    lock, needed = threading.Lock(), 0

    def one(row: Row) -> Row | DataError:
        nonlocal needed
        try:
            found = decoded(row, config)
        except DataError as error:
            return error
        with lock:
            needed += size_of(found)
            return found if needed <= KEPT_BYTES else row

    asked = [row for row in rows if which(row)]
    found: dict[int, Row | DataError] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for row, result in zip(asked, track(pool.map(one, asked), "decoding", total=len(asked), disable=len(asked) < _SHOWN), strict=True):
            found[id(row)] = result
            if isinstance(result, DataError) and config.on_error == "raise":
                pool.shutdown(cancel_futures=True)
                raise DataError(f"{result}; or leave such rows out: data.on_error = skip", kind=result.kind, shard=result.shard) from result
    kept: list[Row] = []
    for row in rows:
        result = found.get(id(row), row)
        if isinstance(result, Row):
            kept.append(result)
        else:
            skips.record(result)
    return kept


def data_set(
    name: str,
    rows: Sequence[Row],
    config: DataConfig,
    skips: Skips,
    *,
    which: Callable[[Row], bool] = lambda row: True,
) -> DataSet:
    """The rows that have one of data.anchors, after `check`, as a data set; held-out rows without all are left out."""
    before = skips.counts.total()

    def usable(row: Row) -> bool:
        return (all if row.split != "train" else any)(map(row.has, config.anchors))

    needed = [row for row in rows if usable(row)]
    good = [row for row in check(needed, config, skips, which=which) if usable(row)]
    if lacking := len(rows) - len(good) - skips.counts.total() + before:
        skips.counts["lacking"] += lacking
    sizes = Counter(row.split for row in good)
    there = ", ".join(f"{anchor} {sum(row.has(anchor) for row in good):,}" for anchor in config.anchors)
    return assemble(
        name=name,
        description=f"{name}, {len(good):,} rows ({', '.join(f'{split} {sizes[split]:,}' for split in ('train', *SPLITS))}; {there})",
        make_source=lambda chosen: RowSource([good[i] for i in chosen]),
        row_captions=[row.caption for row in good],
        row_splits=[row.split for row in good],
        skipped=dict(skips.counts),
        train_rows=config.train_rows,
        seed=config.holdout_seed,
    )
