"""A copy of the emoji pairs, as manifests, in which some training pairs are kept and of the others picture and caption come apart.

full.csv     every pair.                          Columns: image, caption, split (that of the emoji source), truth.
paired.csv   the kept training pairs alone.
unpaired.csv the kept ones; of each other pair a row with the picture alone, whose true caption stands in the column truth (which training
             must not read, but for data.truth_column), and a row with the caption alone. They are shuffled.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bacl_jax.config import DataConfig
from bacl_jax.data import emoji

COLUMNS = ("image", "caption", "split", "truth")
Line = tuple[str, str, str, str]


def lines(rows: Sequence[Line], share: float, random: np.random.Generator) -> dict[str, list[Line]]:
    """The rows of each file, of all rows (image, caption, split, ""); round(share * n) of the n training pairs are kept."""
    train = [row for row in rows if row[2] == "train"]
    held_out = [row for row in rows if row[2] != "train"]
    kept = set(random.permutation(len(train))[: round(share * len(train))].tolist())
    pairs = [row for i, row in enumerate(train) if i in kept]
    apart = [row for i, row in enumerate(train) if i not in kept]
    pictures = [(image, "", split, caption) for image, caption, split, _ in apart]
    captions = [("", caption, split, "") for _, caption, split, _ in apart]
    singles = [(pictures + captions)[i] for i in random.permutation(2 * len(apart))]
    return {"full": train + held_out, "paired": pairs + held_out, "unpaired": pairs + singles + held_out}


def write(folder: Path, config: DataConfig, *, share: float, seed: int) -> None:
    """Writes the pictures and the three manifests. Which pairs are kept is drawn by `seed`."""
    found, _ = emoji.read_rows(emoji.data_folder()[0], config.vendors, config.language)
    rows = []
    for row, split in zip(found, emoji.split_rows(found, config), strict=True):
        path = folder / row.vendor / f"{row.code}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row.content)
        rows.append((str(path.relative_to(folder)), row.caption, split, ""))
    for name, listed in lines(rows, share, np.random.default_rng(seed)).items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *listed])
