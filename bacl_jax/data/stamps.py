"""Tux Paint's stamps (Debian's tuxpaint-stamps-default): pictures with captions in 77 languages, spoken captions and sound effects.

A stamp X has X.png (SVG pictures are left out), X.txt with its English caption and those of other languages, often
X_desc_<language>.ogg, its caption read aloud, and sometimes X.ogg or X.wav, what it sounds like. Stamps with one English caption are in
one split. The class of a stamp is the uppermost folder that it lies in: animals, food, vehicles and so on.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import debian, media, order
from bacl_jax.data.captions import normal
from bacl_jax.data.media import Row
from bacl_jax.data.skips import Skips
from bacl_jax.data.source import DataSet, OnSkip
from bacl_jax.errors import DataError

PACKAGE, INSIDE = "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps"


@dataclasses.dataclass(frozen=True)
class Stamp:
    """One stamp: its key (the path without an ending), captions by language, and the files that are there."""

    key: str
    captions: dict[str, str]
    picture: Path | None
    effect: Path | None
    spoken: dict[str, Path]


def read_stamps(folder: Path) -> Iterator[Stamp]:
    """Every stamp with a caption, in the order of their keys."""
    for text in sorted(folder.rglob("*.txt")):
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        if not lines or not normal(lines[0]):
            continue
        translated = (line.partition(".utf8=") for line in lines[1:] if ".utf8=" in line)
        captions = {language: normal(caption) for language, _, caption in translated if normal(caption)} | {"en": normal(lines[0])}
        stem = text.with_suffix("")
        spoken = {path.stem.rpartition("_desc_")[2]: path for path in sorted(text.parent.glob(f"{stem.name}_desc_*.ogg"))}
        effect = next((path for ending in (".ogg", ".wav") if (path := stem.with_suffix(ending)).is_file()), None)
        picture = stem.with_suffix(".png")
        yield Stamp(str(stem.relative_to(folder)), captions, picture if picture.is_file() else None, effect, spoken)


def load(config: DataConfig, on_skip: OnSkip | None = None) -> DataSet:
    """A row for each stamp and language of stamps.spoken in which it is spoken; with () one for each stamp that has a sound effect.

    Raises ConfigError where the package is not there or nobody speaks one of the languages, and DataError as data/media.py does.
    """
    folder = debian.folder(PACKAGE, INSIDE, config.path)
    stamps = list(read_stamps(folder))
    if not stamps:
        raise DataError(f"{folder}: no stamp in it; expected X.txt beside X.png", kind="missing")
    return media.data_set("stamps", list(lacking(list(rows(stamps, config)), config)), config, Skips(config.on_error, on_skip))


def rows(stamps: Sequence[Stamp], config: DataConfig) -> Iterator[Row]:
    """The rows of all splits, with all that they have."""
    own = config.stamps
    there = {language for stamp in stamps for language in stamp.spoken}
    if unknown := {*own.spoken, *own.spoken_test} - there:
        raise ConfigError(f"config.data.stamps.spoken: nobody speaks {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(there))}")
    split_of = media.held_out([stamp.captions["en"] for stamp in stamps], config)
    for stamp in stamps:
        split = split_of.get(stamp.captions["en"], "train")
        picture = media.picture(stamp.picture, config) if stamp.picture and "image" in config.anchors else None
        label = stamp.key.split("/")[0]
        if not own.spoken:
            effect = media.sound(stamp.effect, config) if stamp.effect else None
            yield Row(stamp.key, stamp.captions["en"], split, picture, effect, label=label)
            continue
        for language in (own.spoken_test or own.spoken) if split != "train" else own.spoken:
            caption = stamp.captions.get(language if own.captions == "spoken" else "en")
            if language in stamp.spoken and caption:
                spoken = media.sound(stamp.spoken[language], config)
                yield Row(f"{language}/{stamp.key}", caption, split, picture, spoken, label=label)


def lacking(rows: Sequence[Row], config: DataConfig) -> Iterator[Row]:
    """The rows, of which a share of training loses picture or sound, in turn; or is left out (stamps.drop_lacking)."""
    own = config.stamps
    train = [number for number, row in enumerate(rows) if row.split == "train"]
    drawn = order.permuted([config.holdout_seed, 1], len(train), range(round(own.lacking * len(train)))).tolist()
    loses = {train[at]: ("picture", "sound")[number % 2] for number, at in enumerate(drawn)}
    for number, row in enumerate(rows):
        if number not in loses:
            yield row
        elif not own.drop_lacking:
            yield dataclasses.replace(row, **{loses[number]: None})
