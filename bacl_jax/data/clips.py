"""One's own clips: a CSV, JSON or JSONL file with a row for each, and where its files lie, written with the row's columns in braces.

WavText5K's CSV with data.clips.audio = "{fname}", WebVid's with data.clips.video = "{page_dir}/{videoid}.mp4" and VAST-27M's JSON with
"{clip_id}.mp4" are read as they are published. A caption column may hold a list: training then draws one of its captions.

Files are read as rows are needed; those of validation and test once beforehand, so that a bad one is known before the run.
"""

import csv
import dataclasses
import functools
import json
import os
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import media, order
from bacl_jax.data.media import Row, normal
from bacl_jax.data.records import FIELD_CHARS, ManifestError
from bacl_jax.data.source import SPLITS, DataSet, OnSkip
from bacl_jax.data.video import ClipFile

Fields = Mapping[str, Any]


def load(config: DataConfig, on_skip: OnSkip | None = None) -> DataSet:
    """Raises ManifestError, naming file and row, for what cannot be read; with data.on_error = "skip" such rows are left out."""
    if not config.path:
        raise ConfigError('config.data.path = None: data.kind = "clips" needs the path of a .csv, .json or .jsonl file')
    path, skipped, found = Path(config.path), Counter(), []
    for number, fields in enumerate(read(path), start=1):
        try:
            found.append(row(path, number, fields, config))
        except ManifestError as error:
            if config.on_error == "raise":
                raise
            skipped[error.kind] += 1
            if on_skip is not None:
                on_skip(error)
    return media.data_set(path.stem, with_splits(found, config), config, on_skip, which=lambda row: row.split != "train", skipped=skipped)


def read(path: Path) -> Iterator[Fields]:
    """The rows of the file, one after the other; its ending tells what it is. ManifestError for what concerns the whole file."""
    try:
        if path.suffix.lower() == ".csv":
            csv.field_size_limit(max(csv.field_size_limit(), FIELD_CHARS))
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file, strict=True)
        elif path.suffix.lower() == ".jsonl":
            with path.open(encoding="utf-8-sig") as file:
                yield from (_object(path, json.loads(line)) for line in file if line.strip())
        elif path.suffix.lower() == ".json":
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(content, list):
                raise ManifestError(path, None, f"a {type(content).__name__}", "write a list of objects", kind="syntax")
            yield from (_object(path, entry) for entry in content)
        else:
            raise ManifestError(path, None, f"unknown type {path.suffix!r}", "use one of .csv, .json, .jsonl", kind="type")
    except OSError as error:
        raise ManifestError(path, None, f"cannot be read ({error})", "correct data.path", kind="missing") from error
    except (csv.Error, UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise ManifestError(path, None, f"not readable ({error})", "save it as UTF-8, with quotes closed", kind="syntax") from error


def _object(path: Path, entry: Any) -> Fields:
    if not isinstance(entry, dict):
        raise ManifestError(path, None, f"a row that is a {type(entry).__name__}", "write an object for each row", kind="syntax")
    return entry


def row(path: Path, number: int, fields: Fields, config: DataConfig) -> Row:
    """One row, its files found and not looked at. ManifestError."""
    clips, folder = config.clips, config.clips.folder or str(path.parent)
    told = _column(path, number, fields, config.caption_column)
    captions = [caption for one in (told if isinstance(told, list) else [told]) if (caption := normal(str(one or "")))]
    if not captions:
        raise ManifestError(path, number, "the caption is empty", "write one or remove the row", kind="empty_caption")
    files = {anchor: located(path, number, fields, pattern, folder) for anchor in media.ANCHORS if (pattern := getattr(clips, anchor))}
    wanted = {anchor: file for anchor, file in files.items() if anchor in config.anchors and file is not None}
    if not wanted:
        remedy = "correct data.clips or data.clips.folder, or remove the row"
        raise ManifestError(path, number, f"no file for {', '.join(config.anchors)} in {folder}", remedy, kind="missing")
    split = str(_column(path, number, fields, config.split_column)).strip() if config.split_column else "train"
    if split not in ("train", *SPLITS):
        raise ManifestError(path, number, f"{split!r} in column {config.split_column!r}", "use train, validation, test", kind="split")
    return Row(
        key=str(_column(path, number, fields, config.id_column))
        if config.id_column
        else next(iter(wanted.values())).removeprefix(f"{folder}/"),
        caption=captions[0],
        others=tuple(captions[1:]),
        split=split,
        picture=media.picture(wanted["image"], config) if "image" in wanted else None,
        sound=media.sound(wanted["audio"], config) if "audio" in wanted else None,
        clip=ClipFile(wanted["video"], config.video.max_frames, config.max_pixels) if "video" in wanted else None,
        label=str(_column(path, number, fields, clips.label)) if clips.label else "",
    )


def _column(path: Path, number: int, fields: Fields, name: str) -> Any:
    if name not in fields:
        there = ", ".join(map(str, fields))
        raise ManifestError(path, number, f"no column {name!r}; found: {there}", "correct data.caption_column and the like", kind="columns")
    return fields[name]


@functools.cache
def _columns_of(pattern: str) -> tuple[str, ...]:
    return tuple(name for _, name, _, _ in string.Formatter().parse(pattern) if name)


def located(path: Path, number: int, fields: Fields, pattern: str, folder: str) -> str | None:
    """The file that a pattern names, None where it is not there. ManifestError where it leads out of the folder."""
    name = pattern.format(**{one: _column(path, number, fields, one) for one in _columns_of(pattern)})
    if name.startswith("/") or ".." in name.split("/"):
        raise ManifestError(path, number, f"{name!r} lies outside {folder}", "move it there, or make a symbolic link", kind="outside")
    found = f"{folder}/{name}"
    return found if "\0" not in found and os.path.exists(found) else None


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
