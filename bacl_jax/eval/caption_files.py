"""Pictures with one or more captions each, from a file: the JSON of Karpathy's splits of COCO and Flickr30k, or a manifest.

No picture is opened here. A file of another form is a DataError of one line that names file, entry or row, and field.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bacl_jax.config import ConfigError
from bacl_jax.config_eval import CaptionedConfig
from bacl_jax.data import records
from bacl_jax.errors import DataError
from bacl_jax.eval.encoder import Shown
from bacl_jax.eval.formats import Fields, parse, read_text
from bacl_jax.settings import how_to_set

FIELD = "config.eval.retrieval"


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A picture and its captions as they are written. key: where it stands in the file, as an error names it; split: "" if none is said."""

    key: str
    shown: Shown
    captions: tuple[str, ...]
    split: str = ""


def read(settings: CaptionedConfig) -> tuple[Path, list[Captioned]]:
    """(folder of the pictures, the pictures of eval.retrieval.split in the order of the file), one or more.

    By default the pictures are in `images` beside a JSON file, and beside a manifest: its paths are relative to its own folder.
    """
    if settings.path is None:
        raise ConfigError(f"{FIELD}.path = None: must name a .json file of Karpathy's form or a manifest; {how_to_set(f'{FIELD}.path')}")
    if settings.images is not None and not Path(settings.images).is_dir():
        raise ConfigError(f"{FIELD}.images = {settings.images!r}: is no folder; {how_to_set(f'{FIELD}.images')}")
    path = Path(settings.path)
    json = path.suffix.lower() == ".json"
    found = list(_karpathy(path) if json else _manifest(path, settings))
    chosen = [one for one in found if one.split == settings.split] if any(one.split for one in found) else found
    if not chosen:
        there = ", ".join(f"{split} ({count:,})" for split, count in sorted(Counter(one.split for one in found).items()))
        raise DataError(f"{path}: no picture is of split {settings.split!r}; found: {there or 'none'}; correct {FIELD}.split", kind="empty")
    if settings.captions is not None:
        chosen = [dataclasses.replace(one, captions=one.captions[: settings.captions]) for one in chosen]
    return Path(settings.images) if settings.images else path.parent / "images" if json else path.parent, chosen


def _karpathy(path: Path) -> Iterator[Captioned]:
    """dataset_coco.json, dataset_flickr30k.json: {"images": [{"filename", "filepath", "split", "sentences": [{"raw", ...}]}, ...], ...}.

    The picture is `filepath`/`filename` where that is there, else `filename`; Flickr30k's file has no `filepath`.
    """
    whole = Fields(path, "of the file", parse(read_text(path), str(path)))
    images = whole.value("images")
    if not isinstance(images, list):
        raise whole.wrong(f"holds a {type(images).__name__}", "must be a list of pictures", "images")
    for number, record in enumerate(images):
        fields = Fields(path, str(number), record)
        sentences = fields.value("sentences")
        if not isinstance(sentences, list) or not sentences:
            raise fields.wrong(f"{sentences!r}", "must be a list of one or more captions", "sentences")
        captions = tuple(Fields(path, f"{number}, sentence {place}", one).text("raw") for place, one in enumerate(sentences))
        name, folder = fields.text("filename"), fields.optional_text("filepath")
        yield Captioned(str(number), Shown((f"{folder}/{name}", name) if folder else (name,)), captions, fields.text("split"))


def _manifest(path: Path, settings: CaptionedConfig) -> list[Captioned]:
    """A row for each caption; rows with one image are one picture. Its first row says its split."""
    found: dict[str, Captioned] = {}
    columns = [settings.image_column, settings.caption_column, *filter(None, (settings.split_column,))]
    for row, fields in records.read(path, columns):
        text = {column: records.text(path, row, column, value).strip() for column, value in fields.items()}
        for column in columns:
            if not text[column]:
                raise records.ManifestError(
                    path, row, f"column {column!r} is empty", "write a text or remove the row", kind="empty_caption"
                )
        image, split = text[settings.image_column], text[settings.split_column] if settings.split_column else ""
        one = found.setdefault(image, Captioned(f"of row {row}", Shown((image,)), (), split))
        if one.split != split:
            raise records.ManifestError(path, row, f"{image!r} is in split {split!r}, before in {one.split!r}", "keep one", kind="split")
        found[image] = dataclasses.replace(one, captions=(*one.captions, text[settings.caption_column]))
    return list(found.values())
