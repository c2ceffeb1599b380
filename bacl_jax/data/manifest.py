"""A user's own pairs: a CSV, JSONL or Parquet file with an image path and a caption in each row, optionally an id and a split.

The file's ending chooses the reader: .csv (a header line, UTF-8, comma), .jsonl (one object a line, UTF-8), .parquet (text columns).
`data.image_column`, `caption_column`, `id_column` and `split_column` name the columns; others are ignored.

Image paths are relative to the manifest's folder and stay in it: "../x.png", or an absolute path that leads elsewhere, is refused, so that
a manifest from someone else cannot point at other files. Pictures that lie elsewhere are reached by a symbolic link in that folder.

Nothing is invented: rows without a split column are all training rows, and the validation and test splits then have zero rows.
"""

import dataclasses
import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import track

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import storage, transforms
from bacl_jax.data.captions import normal
from bacl_jax.data.records import Fields, ManifestError, read, text
from bacl_jax.data.skips import Skips
from bacl_jax.data.source import SPLITS, ArraySource, DataSet, Example, OnSkip, Source, assemble
from bacl_jax.data.stream import FileRecords
from bacl_jax.data.unpaired import separated
from bacl_jax.errors import DataError

log = logging.getLogger("bacl_jax")

KEPT_BYTES = 512 * 2**20  # decoded pictures are kept in memory when they all fit into this
Pictures = list[np.ndarray | None]  # of each row, None where it has none
_THREADS = min(32, 2 * (os.cpu_count() or 1))
_SPLIT_NAMES = ("train", *SPLITS)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One accepted row; `path` exists, `caption` is normalised, `row` is its number in the manifest, from 1.

    With data.unpaired_share one of the two may be missing (None, ""); truth is then that of data.truth_column, normalised.
    """

    row: int
    path: Path | None
    caption: str
    anchor_key: str
    split: str
    truth: str = ""


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Pairs whose pictures are read when they are asked for; looked at whole, they are shrunk to `max_side` on the shorter side."""

    pairs: Sequence[Pair]
    max_pixels: int
    max_side: int

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if the file changed since start-up and can no longer be read."""
        pair = self.pairs[index]
        if pair.path is None:
            return Example(None, pair.caption, pair.anchor_key)
        try:
            content = pair.path.read_bytes()
        except OSError as error:
            raise DataError(f"{pair.path}: cannot be read ({error}); it was readable at start-up", kind="unreadable") from error
        picture = transforms.Encoded(content, f"{pair.path} (readable at start-up)", "", self.max_pixels, self.max_side)
        return Example(picture, pair.caption, pair.anchor_key, truth=pair.truth)


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
    manifest, skips = _path(config), Skips(config.on_error, on_skip)
    pairs = _pairs(manifest, config, skips)
    pairs.sort(key=lambda pair: (pair.path is None, not pair.caption))  # complete ones, pictures, captions: as unpaired.separated wants
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
        keys, truths = [pair.anchor_key for pair in chosen], [pair.truth for pair in chosen]
        return ArraySource([images[i] for i in rows], [pair.caption for pair in chosen], keys, truths)

    sizes = Counter(pair.split for pair in pairs)
    dataset = assemble(
        name=manifest.stem,
        description=f"{manifest}, {len(pairs):,} pairs ({', '.join(f'{split} {sizes[split]:,}' for split in _SPLIT_NAMES)})",
        make_source=make_source,
        row_captions=[pair.caption for pair in pairs],
        row_splits=[pair.split for pair in pairs],
        skipped=dict(skips.counts),
        train_rows=config.train_rows,
        seed=config.holdout_seed,
    )
    return separated(dataset, config.unpaired_share) if config.unpaired_share else dataset


def records(config: DataConfig, on_skip: OnSkip | None = None) -> FileRecords:
    """The rows of the manifest whose split is data.split (all where it has no splits), their pictures unread. Raises as `load` does."""
    if config.split not in _SPLIT_NAMES:
        raise ConfigError(f"data.split = {config.split!r}; allowed for a manifest: {', '.join(_SPLIT_NAMES)}")
    complete = dataclasses.replace(config, unpaired_share=0.0)
    pairs = [pair for pair in rows(complete, on_skip) if pair.split == config.split]
    paths = [pair.path for pair in pairs if pair.path is not None]
    return FileRecords(paths, [pair.caption for pair in pairs], [pair.anchor_key for pair in pairs])


def rows(config: DataConfig, on_skip: OnSkip | None = None) -> list[Pair]:
    """The rows of the manifest as they are written, their pictures unread. Raises as `load` does."""
    return _pairs(_path(config), config, Skips(config.on_error, on_skip))


def _path(config: DataConfig) -> Path:
    if not config.path:
        raise ConfigError('data.path = None; data.kind = "manifest" needs the path of a .csv, .jsonl or .parquet file')
    if storage.is_remote(config.path):
        found = "a manifest and its pictures are read from a local folder; copy that, or store the pictures in tar shards or Parquet"
        raise DataError(f"{config.path}: {found}", kind="type", shard=config.path)
    return Path(config.path)


def _pairs(manifest: Path, config: DataConfig, skips: Skips) -> list[Pair]:
    further = config.id_column, config.split_column, config.truth_column
    columns = [config.image_column, config.caption_column, *filter(None, further)]
    return [pair for row, fields in read(manifest, columns) if (pair := skips.guard(_parse, manifest, row, fields, config)) is not None]


def _parse(manifest: Path, row: int, record: Fields, config: DataConfig) -> Pair:
    fields = {column: text(manifest, row, column, value) for column, value in record.items()}
    split = fields[config.split_column].strip() if config.split_column else "train"
    if split not in _SPLIT_NAMES:
        raise ManifestError(
            manifest, row, f"{split!r} in column {config.split_column!r}", f"use one of {', '.join(_SPLIT_NAMES)}", kind="split"
        )
    alone, remedy = _may_be_alone(config, split)
    caption, image = normal(fields[config.caption_column], cleaned=config.clean_captions), fields[config.image_column].strip()
    if not caption and not (alone and image):
        raise ManifestError(manifest, row, f"the caption (column {config.caption_column!r}) is empty", remedy, kind="empty_caption")
    truth = normal(fields[config.truth_column], cleaned=config.clean_captions) if config.truth_column and not caption else ""
    if not image and alone:
        return Pair(row, None, caption, "", split)
    if not image:
        raise ManifestError(manifest, row, "the image path is empty", remedy, kind="missing")
    path = _locate(manifest, row, image)
    anchor_key = fields[config.id_column].strip() if config.id_column else ""
    anchor_key = anchor_key or os.path.relpath(os.path.realpath(path), os.path.realpath(manifest.parent))
    return Pair(row, path, caption, anchor_key, split, truth)


def _may_be_alone(config: DataConfig, split: str) -> tuple[bool, str]:
    """Whether a row of this split may lack its caption or its picture, and what to do about one that must not."""
    if split != "train":
        return False, f"write one or remove the row: those of {split} are pairs"
    if config.unpaired_share:
        return True, "write one, or an image path, or remove the row"
    return False, "write one, remove the row, or train on such rows, too, with data.unpaired_share"


def _locate(manifest: Path, row: int, image: str) -> Path:
    """The picture's path, inside the manifest's folder by name; an existing regular file."""
    folder = os.path.abspath(manifest.parent)
    path = os.path.normpath(os.path.join(folder, image))
    if os.path.commonpath([folder, path]) != folder:
        raise ManifestError(
            manifest, row, f"image {image!r} lies outside {folder}", "move it there, or make a symbolic link there", kind="outside"
        )
    try:
        exists = os.path.isfile(path)
    except ValueError:  # a NUL in the path
        exists = False
    if not exists:
        raise ManifestError(manifest, row, f"image {image!r} is no file in {folder}", "correct the path or remove the row", kind="missing")
    return Path(path)


def _check_pictures(manifest: Path, pairs: list[Pair], config: DataConfig, skips: Skips) -> tuple[list[Pair], Pictures | None]:
    """Decode every file once; (the pairs whose picture is good, their pictures or None if they need more than KEPT_BYTES).

    Rows without a picture are good, with None in its place.
    """
    paths = list(dict.fromkeys(pair.path for pair in pairs if pair.path is not None))
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
        if pair.path is not None and (error := errors.get(pair.path)) is not None:
            found = f"image {pair.path}: {error}"
            skips.record(ManifestError(manifest, pair.row, found, "replace the file or remove the row", kind=error.kind))
    good = [pair for pair in pairs if pair.path not in errors]
    return good, [None if pair.path is None else images[pair.path] for pair in good] if needed <= KEPT_BYTES else None


def _warn_of_leaks(manifest: Path, pairs: Sequence[Pair]) -> None:
    trained = {pair.anchor_key for pair in pairs if pair.split == "train" and pair.path is not None}
    leaked = sorted({pair.anchor_key for pair in pairs if pair.split != "train"} & trained)
    if leaked:
        log.warning("%s: %d images are both in training and in a hold-out, such as %r", manifest, len(leaked), leaked[0])
