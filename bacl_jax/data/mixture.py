"""Several data sets as one: each batch has the same share of rows from each (`sampler.Sampler`), the hold-outs are those of all."""

import bisect
import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from bacl_jax.config import DataConfig
from bacl_jax.data.halftrue import HalfTrueIndex
from bacl_jax.data.source import SPLITS, DataSet, EvalSplit, Example, OnSkip, Part, Source
from bacl_jax.errors import DataError

_SAMPLE = 20_000  # captions that a tokenizer is trained on, of all sources


@dataclasses.dataclass(frozen=True)
class Joined:
    """Sources one after the other. The anchor keys of a source are told from the others' by its name."""

    sources: Sequence[Source]
    names: Sequence[str]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        """Raises DataError as the source does, with the source's name before the message."""
        number = bisect.bisect_right(self._ends, index)
        try:
            example = self.sources[number][index - (self._ends[number - 1] if number else 0)]
        except DataError as error:
            raise DataError(f"{self.names[number]}: {error}", kind=error.kind, shard=error.shard) from error
        return dataclasses.replace(example, anchor_key=f"{self.names[number]}/{example.anchor_key}")

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(map(len, self.sources)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(DataSet):
    """A data set of several; `train_caption` is None."""

    members: tuple[DataSet, ...]
    weights: tuple[float, ...]

    def parts(self) -> tuple[Part, ...]:
        return tuple(Part(member.name, len(member.train), weight) for member, weight in zip(self.members, self.weights, strict=True))

    def left_out_by_part(self) -> dict[str, tuple[DataError, ...]]:
        return {member.name: member.left_out for member in self.members}

    def training_captions(self) -> list[str]:
        """About 20,000 captions, of each source in proportion to its weight, those that lie evenly among what it gives."""
        found: list[str] = []
        for member, weight in zip(self.members, self.weights, strict=True):
            captions = member.training_captions()
            rows = np.linspace(0, len(captions) - 1, min(round(_SAMPLE * weight / sum(self.weights)), len(captions)))
            found.extend(captions[row] for row in rows.astype(np.int64).tolist())
        return found


def load(config: DataConfig, on_skip: OnSkip | None, load_one: Callable[[DataConfig, OnSkip | None], DataSet]) -> DataSet:
    """The data sets of `config.sources` as one. load_one: reads one of them."""
    members = []
    for name, source in zip(config.source_names(), config.sources, strict=True):
        own = {field.name: getattr(source, field.name) for field in dataclasses.fields(source) if field.name not in ("weight", "name")}
        try:
            members.append(dataclasses.replace(load_one(dataclasses.replace(config, sources=(), **own), on_skip), name=name))
        except DataError as error:
            raise DataError(f"{name}: {error}", kind=error.kind, shard=error.shard) from error
    return join(members, [source.weight for source in config.sources])


def join(members: Sequence[DataSet], weights: Sequence[float]) -> Mixture:
    """Data sets of different names as one."""
    names = [member.name for member in members]
    captions = tuple(sorted({caption for member in members for caption in held_out(member)}))
    position = {caption: i for i, caption in enumerate(captions)}
    splits = {}
    for split in SPLITS:
        held = [member.splits[split] for member in members]
        own = [position[member.captions[i]] for member, part in zip(members, held, strict=True) for i in part.caption.tolist()]
        splits[split] = EvalSplit(Joined([part.source for part in held], names), np.array(own, np.int64))
    total = sum(weights)
    shares = "; ".join(f"{weight / total:.0%} {member.description}" for member, weight in zip(members, weights, strict=True))
    return Mixture(
        name="mixture",
        description=f"mixture of {len(members)}: {shares}",
        train=Joined([member.train for member in members], names),
        train_caption=None,
        splits=splits,
        captions=captions,
        half_true=HalfTrueIndex(captions),
        skipped=dict(sum((Counter(member.skipped) for member in members), Counter())),
        members=tuple(members),
        weights=tuple(weights),
    )


def held_out(member: DataSet) -> list[str]:
    """The captions of a data set's splits."""
    return [member.captions[i] for split in member.splits.values() for i in split.caption.tolist()]
