"""One's own clips: a CSV, JSON, JSONL or Parquet file with a row for each; where its files lie is written with the row's columns in braces.

WavText5K's CSV with data.clips.audio = "{fname}", WebVid's with data.clips.video = "{page_dir}/{videoid}.mp4" and VAST-27M's JSON with
"{clip_id}.mp4" are read as they are published. A caption column may hold a list: training then draws one of its captions.

Files are read as rows are needed; those of validation and test once beforehand, so that a bad one is known before the run.
"""

import dataclasses
import functools
import os
import stat
import string
from collections.abc import Callable
from pathlib import Path

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import media, order, records
from bacl_jax.data.captions import normal
from bacl_jax.data.media import Row
from bacl_jax.data.records import Fields, ManifestError, text
from bacl_jax.data.skips import Skips
from bacl_jax.data.source import SPLITS, DataSet, OnSkip
from bacl_jax.data.video import ClipFile


def load(config: DataConfig, on_skip: OnSkip | None = None) -> DataSet:
    """Raises ManifestError, naming file and row, for what cannot be read; with data.on_error = "skip" such rows are left out."""
    if not config.path:
        raise ConfigError('config.data.path = None: data.kind = "clips" needs the path of a .csv, .json, .jsonl or .parquet file')
    path, skips = Path(config.path), Skips(config.on_error, on_skip)
    rows = records.read(path, columns(config), {".json": records.read_json})
    found = [one for number, fields in rows if (one := skips.guard(row, path, number, fields, config)) is not None]
    return media.data_set(path.stem, with_splits(found, config), config, skips, which=lambda row: row.split != "train")


def columns(config: DataConfig) -> list[str]:
    """The columns that the rows are made of."""
    patterns = [pattern for anchor in media.ANCHORS if (pattern := getattr(config.clips, anchor))]
    named = [config.caption_column, config.id_column, config.split_column, config.clips.label]
    return list(dict.fromkeys([*filter(None, named), *(name for pattern in patterns for name in _columns_of(pattern))]))


def row(path: Path, number: int, fields: Fields, config: DataConfig) -> Row:
    """One row, its files found and not looked at. ManifestError."""
    clips, folder = config.clips, config.clips.folder or str(path.parent)

    def told(column: str | None) -> str:
        return text(path, number, column, fields[column]) if column else ""

    given = fields[config.caption_column]
    among = [text(path, number, config.caption_column, one) for one in (given if isinstance(given, list) else [given])]
    captions = [caption for one in among if (caption := normal(one, cleaned=config.clean_captions))]
    if not captions:
        raise ManifestError(path, number, "the caption is empty", "write one or remove the row", kind="empty_caption")
    files = {anchor: located(path, number, pattern, folder, told) for anchor in media.ANCHORS if (pattern := getattr(clips, anchor))}
    wanted = {anchor: file for anchor, file in files.items() if anchor in config.anchors and file is not None}
    if not wanted:
        remedy = "correct data.clips or data.clips.folder, or remove the row"
        raise ManifestError(path, number, f"no file for {', '.join(config.anchors)} in {folder}", remedy, kind="missing")
    split = told(config.split_column).strip() if config.split_column else "train"
    if split not in ("train", *SPLITS):
        raise ManifestError(path, number, f"{split!r} in column {config.split_column!r}", "use train, validation, test", kind="split")
    return Row(
        key=told(config.id_column).strip() or next(iter(wanted.values())).removeprefix(f"{folder}/"),
        caption=captions[0],
        others=tuple(captions[1:]),
        split=split,
        picture=media.picture(wanted["image"], config) if "image" in wanted else None,
        sound=media.sound(wanted["audio"], config) if "audio" in wanted else None,
        clip=ClipFile(wanted["video"], config.video.max_frames, config.max_pixels) if "video" in wanted else None,
        label=told(clips.label),
    )


@functools.cache
def _columns_of(pattern: str) -> tuple[str, ...]:
    """Those in braces."""
    return tuple(name for _, name, _, _ in string.Formatter().parse(pattern) if name)


def located(path: Path, number: int, pattern: str, folder: str, told: Callable[[str], str]) -> str | None:
    """The file that a pattern names, or the folder with a clip's frames; None where it is not there, or the row leaves one of the columns
    empty. ManifestError where it leads out of the folder."""
    values = {column: told(column) for column in _columns_of(pattern)}
    if not all(value.strip() for value in values.values()):
        return None
    name = pattern.format(**values)
    if name.startswith("/") or ".." in name.split("/"):
        raise ManifestError(path, number, f"{name!r} lies outside {folder}", "move it there, or make a symbolic link", kind="outside")
    try:
        mode = os.stat(found := f"{folder}/{name}").st_mode
    except (OSError, ValueError):  # ValueError: a null character in it
        return None
    return found if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None  # of a pipe nothing could be read, ever


def with_splits(rows: list[Row], config: DataConfig) -> list[Row]:
    """The rows, of which data.validation_rows and data.test_rows leave training, drawn by holdout_seed, where there is no split column."""
    sizes = (config.validation_rows, config.test_rows)
    if config.split_column or not sum(sizes):
        return rows
    if sum(sizes) >= len(rows):
        raise ConfigError(f"config.data.validation_rows + config.data.test_rows = {sum(sizes)}: must be less than {len(rows)}, the rows")
    drawn = order.permuted([config.holdout_seed], len(rows), range(sum(sizes))).tolist()
    split_of = {at: SPLITS[place >= sizes[0]] for place, at in enumerate(drawn)}
    return [dataclasses.replace(one, split=split_of.get(at, one.split)) for at, one in enumerate(rows)]
