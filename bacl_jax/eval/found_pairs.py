"""Pairs out of rows that lack one modality: finished runs find the captions of a manifest's pictures that have none (`matching.py`)."""

import csv
import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import manifest
from bacl_jax.errors import DataError
from bacl_jax.eval.encoder import Encoder, Shown
from bacl_jax.eval.matching import Assignment, assign, joined
from bacl_jax.eval.restore import restore


@dataclasses.dataclass(frozen=True)
class Found:
    """pairs: the complete rows of the manifest. found: those made of its pictures alone, the surest first, and the `confidence` of each.

    pictures, captions: rows for training that lack the other, and can be read. right: how many of `found` have their true caption; None
    where none is known.
    """

    pairs: list[manifest.Pair]
    found: list[manifest.Pair]
    confidence: list[float]
    pictures: int
    captions: int
    right: int | None

    def summary(self) -> str:
        """One line: how many, how sure, and how many are right where that is known."""
        said = f"{len(self.found):,} of {self.pictures:,} pictures got a caption, out of {self.captions:,} rows"
        said += f"; confidence {self.confidence[0]:.2f} to {self.confidence[-1]:.2f}"
        return said + ("" if self.right is None else f"; {100 * self.right / len(self.found):.1f} % of them their own")


def find(workdirs: Sequence[str | os.PathLike[str]], data: DataConfig, *, share: float, tau: float, show_progress: bool = False) -> Found:
    """The surest captions by the mean cosine of the runs, for `share` of the pictures without one.

    data: names the manifest and its columns; a bad row is left out or an error, by data.on_error. Raises ConfigError where no picture or no
    caption stands alone, DataError as a manifest does. Memory: 4 D bytes a picture and caption alone.
    """
    rows = manifest.rows(dataclasses.replace(data, unpaired_share=0.5))
    alone = [row for row in rows if row.path is not None and not row.caption]
    captions = Counter(row.caption for row in rows if row.path is None)
    if not alone or not captions:
        raise ConfigError(
            f"--manifest={data.path}: {len(alone):,} training rows lack a caption and {captions.total():,} an image: both must be above 0"
        )
    folder, texts, z, w = Path(os.path.abspath(str(data.path))).parent, list(captions), [], []
    shown = [Shown((os.path.relpath(str(row.path), folder),)) for row in alone]
    unreadable: dict[int, DataError] = {}
    for workdir in workdirs:
        run = restore(workdir)
        encoder = Encoder(run.trainer, run.params, run.tokenizer, run.config, show_progress)
        pictures, errors = encoder.pictures(folder, shown)
        unreadable |= errors
        if unreadable and (data.on_error == "raise" or len(unreadable) == len(alone)):
            raise next(iter(unreadable.values()))
        z.append(pictures)
        w.append(encoder.texts(texts))
    good = [i for i in range(len(alone)) if i not in unreadable]
    best = assign(joined(z)[good], joined(w), np.array(list(captions.values())), tau=tau)
    return _chosen(rows, [alone[i] for i in good], texts, best, share, captions.total())


def _chosen(
    rows: list[manifest.Pair], alone: list[manifest.Pair], texts: list[str], best: Assignment, share: float, captions: int
) -> Found:
    surest = np.argsort(-best.confidence, kind="stable")[: max(1, round(share * len(alone)))]
    found = [dataclasses.replace(alone[i], caption=texts[best.caption[i]]) for i in surest]
    known = any(row.truth for row in found)
    return Found(
        pairs=[row for row in rows if row.path is not None and row.caption],
        found=found,
        confidence=[float(best.confidence[i]) for i in surest],
        pictures=len(alone),
        captions=captions,
        right=sum(row.truth == row.caption for row in found) if known else None,
    )


def write(found: Found, data: DataConfig, out: Path) -> None:
    """A CSV manifest beside the one that was read: its complete rows, then the found ones, with columns of the same names and `confidence`.

    A reader sees no file or the whole one. The confidence of a given pair is empty.
    """
    folder = Path(os.path.abspath(str(data.path))).parent
    columns = [data.image_column, data.caption_column, *filter(None, (data.id_column, data.split_column, data.truth_column)), "confidence"]
    rows = [(row, "") for row in found.pairs] + [(row, f"{sure:.4f}") for row, sure in zip(found.found, found.confidence, strict=True)]
    partial = out.with_name(f".{out.name}.part")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row, confidence in rows:
            further = {data.id_column: row.anchor_key, data.split_column: row.split, data.truth_column: row.truth}
            fields = {data.image_column: os.path.relpath(str(row.path), folder), data.caption_column: row.caption, "confidence": confidence}
            writer.writerow(fields | {name: value for name, value in further.items() if name})
    partial.replace(out)
