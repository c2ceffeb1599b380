"""Training rows that lack one modality: pictures without a caption and captions without a picture, beside complete pairs.

A place of a batch that is not a pair's holds a picture and a caption that were not given together, one of each kind of row. So every place
has both, no tower runs on nothing, and all shapes are static. Where one kind is missing, complete pairs stand in for it.
"""

import dataclasses
from typing import Any

from bacl_jax.config import ConfigError
from bacl_jax.data.source import DataSet, Example, Part, Source

PAIRS, PICTURES, CAPTIONS, STAND_INS = "pairs", "pictures", "captions", "stand_ins"


@dataclasses.dataclass(frozen=True)
class Head:
    """The first rows of a source."""

    source: Source
    rows: int

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Example:
        return self.source[index]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnpairedDataSet(DataSet):
    """`train` holds the complete pairs, then the pictures, then the captions; `train_caption` is None.

    share: of the places of a batch that hold a picture and a caption of different rows. told: the captions of all training rows.
    """

    pairs: int
    pictures: int
    share: float
    told: tuple[str, ...]

    def parts(self) -> tuple[Part, ...]:
        captions = len(self.train) - self.pairs - self.pictures
        singles = [Part(PICTURES, self.pictures, self.share)] if self.pictures else []
        if captions:
            singles.append(Part(CAPTIONS, captions, self.share, beside=bool(singles)))
        if len(singles) == 1:
            singles.append(Part(STAND_INS, self.pairs, self.share, beside=True, start=0))
        return Part(PAIRS, self.pairs, 1 - self.share), *singles

    def training_captions(self) -> list[str]:
        return list(self.told)

    def complete(self) -> Source:
        return Head(self.train, self.pairs)


def separated(dataset: DataSet, share: float) -> UnpairedDataSet:
    """A data set whose training rows are the complete ones, then those without a caption (caption index -1), then those without a picture.

    ConfigError where no row is complete or all are.
    """
    assert dataset.train_caption is not None
    without_caption = dataset.train_caption < 0
    pictures = int(without_caption.sum())
    pairs = int(without_caption.argmax()) if pictures else sum(dataset.train[row].picture is not None for row in range(len(dataset.train)))
    if pairs in (0, len(dataset.train)):
        found = "no training row has a picture and a caption" if pairs == 0 else "every training row has a picture and a caption"
        raise ConfigError(f"config.data.unpaired_share = {share}: {found} ({dataset.description}); set it to 0 or add such rows")
    counts = f"{pairs:,} complete, {pictures:,} pictures and {len(dataset.train) - pairs - pictures:,} captions alone"
    fields: dict[str, Any] = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(dataset)}
    fields |= {"train_caption": None, "description": f"{dataset.description}; in training {counts}"}
    told = tuple(dataset.captions[i] for i in dataset.train_caption if i >= 0)
    return UnpairedDataSet(**fields, pairs=pairs, pictures=pictures, share=share, told=told)
