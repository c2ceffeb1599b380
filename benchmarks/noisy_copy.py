"""A copy of the emoji pairs, as a manifest, in which some pairs are known to be wrong, doubled or renamed: what the audit is measured on.

Columns of pairs.csv: image, caption, split (that of the emoji source) and fold_1, fold_2 (the training rows in two halves, drawn by chance:
what one column calls train is validation in the other). truth.csv tells of each training row what was done to it.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bacl_jax.config import DataConfig
from bacl_jax.data import emoji

COPY_SIDE, COPY_QUALITY = 64, 85  # pixels and JPEG quality of a copy that is saved anew


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the copy. image: path in its folder. of: path of the picture that it is a copy of, or nothing.

    what: "" (as it was), "shuffled", "copied" (the same file), "saved anew" (smaller, as JPEG) or "renamed" (saved anew, words reversed).
    """

    image: str
    caption: str
    split: str
    content: bytes = dataclasses.field(repr=False)
    true_caption: str
    what: str = ""
    of: str = ""


def shuffled(captions: Sequence[str], share: float, random: np.random.Generator) -> list[str]:
    """`captions` of which round(share * n), drawn by chance, have moved on to the next one drawn that reads otherwise.

    ValueError where the drawn captions cannot be placed so that each row's caption changes.
    """
    drawn = random.permutation(len(captions))[: round(share * len(captions))]
    moved = [captions[row] for row in drawn]
    for _ in range(1000):
        clash = [i for i, row in enumerate(drawn) if moved[i] == captions[row]]
        if not clash:
            break
        for i in clash:
            j = int(random.integers(len(moved)))
            moved[i], moved[j] = moved[j], moved[i]
    else:
        raise ValueError(f"{len(drawn)} captions cannot be shuffled so that each row gets another one")
    result = list(captions)
    for row, caption in zip(drawn, moved, strict=True):
        result[row] = caption
    return result


def rows(config: DataConfig, *, share: float, copies: int, seed: int) -> list[Row]:
    """The emoji rows with `share` of the training captions shuffled, and `copies` added of each of the three kinds, all drawn by `seed`."""
    random = np.random.default_rng(seed)
    found, _ = emoji.read_rows(emoji.data_folder()[0], config.vendors, config.language)
    splits = emoji.split_rows(found, config)
    train = [row for row, split in zip(found, splits, strict=True) if split == "train"]
    captions = iter(shuffled([row.caption for row in train], share, random))
    made = []
    for row, split in zip(found, splits, strict=True):
        caption = next(captions) if split == "train" else row.caption
        what = "" if caption == row.caption else "shuffled"
        made.append(Row(f"{row.vendor}/{row.code}.png", caption, split, row.content, row.caption, what))
    return made + _copies([row for row in made if row.split == "train" and not row.what], copies, random)


def _copies(rows: Sequence[Row], count: int, random: np.random.Generator) -> list[Row]:
    """`count` copies of each kind, of different rows; those to be renamed have three different words or more."""
    order = [rows[i] for i in random.permutation(len(rows))]
    renamed = [row for row in order if len(set(row.caption.split())) > 2][:count]
    taken = {row.image for row in renamed}
    others = [row for row in order if row.image not in taken][: 2 * count]
    made = [dataclasses.replace(row, image=f"copied/{row.image}", what="copied", of=row.image) for row in others[:count]]
    for row, what in [(row, "saved anew") for row in others[count:]] + [(row, "renamed") for row in renamed]:
        caption = " ".join(reversed(row.caption.split())) if what == "renamed" else row.caption
        image = f"{what.replace(' ', '_')}/{row.image.removesuffix('.png')}.jpg"
        made.append(dataclasses.replace(row, image=image, caption=caption, content=_saved_anew(row.content), what=what, of=row.image))
    return made


def _saved_anew(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as picture:
        rgba = picture.convert("RGBA").resize((COPY_SIDE, COPY_SIDE), Image.Resampling.BICUBIC)
    ground = Image.new("RGBA", rgba.size, "white")
    out = io.BytesIO()
    Image.alpha_composite(ground, rgba).convert("RGB").save(out, "JPEG", quality=COPY_QUALITY)
    return out.getvalue()


def write(folder: Path, rows: Sequence[Row], seed: int) -> Path:
    """Writes the pictures, truth.csv and pairs.csv; the path of pairs.csv. The halves are drawn by `seed`."""
    random = np.random.default_rng([seed, 1])
    with (
        (folder_of(folder) / "pairs.csv").open("w", newline="", encoding="utf-8") as pairs,
        (folder / "truth.csv").open("w", newline="", encoding="utf-8") as truth,
    ):
        listed, told = csv.writer(pairs), csv.writer(truth)
        listed.writerow(("image", "caption", "split", "fold_1", "fold_2"))
        told.writerow(("image", "caption", "true_caption", "what", "of"))
        for row in rows:
            path = folder / row.image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row.content)
            halves = ("train", "validation") if random.random() < 0.5 else ("validation", "train")
            listed.writerow((row.image, row.caption, row.split, *(halves if row.split == "train" else ("test", "test"))))
            if row.split == "train":
                told.writerow((row.image, row.caption, row.true_caption, row.what, row.of))
    return folder / "pairs.csv"


def folder_of(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
