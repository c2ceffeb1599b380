"""The input pipeline: a step's batch is a pure function of (seed, step) and of the partner list in force, on any number of hosts.

Dimension legend: B rows of the global batch (b of this host), S pixels a side, T tokens a caption.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import grain
import numpy as np
from jaxtyping import Bool, UInt8, UInt32

from bacl_jax.config import Config, ConfigError, DataConfig
from bacl_jax.data import features, inputs, order, transforms
from bacl_jax.data.faults import Faults
from bacl_jax.data.features import FeatureFiles
from bacl_jax.data.halftrue import names_side
from bacl_jax.data.sampler import Sampler
from bacl_jax.data.source import DataSet, Source, hash_ids
from bacl_jax.data.stages import Stages
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.errors import DataError
from bacl_jax.types import Batch, Tokens

T = TypeVar("T")
_LAST_STEP = 2**31 - 1
_ATTEMPTS = 16  # rows tried for one place of a batch


@dataclasses.dataclass(frozen=True)
class Pair:
    """One place of a batch: the inputs of its anchors (none where the features of its picture are stored, or the row has none), caption,
    key of the anchor, stored features by name; what the picture's true caption is, as far as it is known, and whether picture and caption
    are of one row."""

    inputs: dict[str, inputs.Input]
    caption: str
    anchor_key: str
    stored: dict[str, np.ndarray]
    truth: str
    paired: bool = True

    def beside(self, other: "Pair") -> "Pair":
        """The picture of the one and the caption of the other, whichever has which; both of `self` where it has both."""
        shown, told = (self, other) if self.inputs else (other, self)
        return dataclasses.replace(shown, caption=told.caption, paired=False)


class BatchBuilder:
    """step -> this host's rows of the batch. Thread safe. With data.on_error = "skip" a row that cannot be read is replaced by another."""

    def __init__(
        self,
        dataset: DataSet,
        tokenizer: Tokenizer,
        config: Config,
        *,
        partners: order.PartnerLists | None,
        partner_share: Callable[[int], float],
        shard: tuple[Sequence[int], int],
        faults: Faults | None = None,
        stages: Stages | None = None,
        stored: FeatureFiles | None = None,
    ):
        self._stored = stored
        self._dataset, self._tokenizer, self._config = dataset, tokenizer, config
        self._partners, self._partner_share = partners, partner_share
        self._faults = faults or Faults(config.data.max_error_share)
        self.sampler = Sampler(config.seed, config.train.batch_size, dataset.parts(), config.data)
        self._stages = stages or Stages()
        held, blocks = shard
        batch_size = config.train.batch_size
        if batch_size % blocks:
            raise ConfigError(f"train.batch_size = {batch_size} must be a multiple of the number of blocks that processes hold, {blocks}")
        self._held = np.arange(batch_size).reshape(blocks, -1)[list(held)].ravel()

    def rows(self, step: int) -> np.ndarray:
        """Training rows of the whole global batch, int64 [B]."""
        config = self._config
        rows = self.sampler.rows(step)
        current = self._partners.at(step) if self._partners is not None else None
        if current is None:
            return rows
        mixed = order.with_partners(rows, current, self._partner_share(step), config.seed, step)
        assert self._partners is not None
        self._partners.count(step, int(np.count_nonzero(mixed != rows)))
        return mixed

    def _pair(self, row: int, choice: float, draw: list[float], media: list[float]) -> Pair:
        """The pair at a row; choice, in [0, 1), draws its caption, `draw` (`transforms.augmentation`) the crop, `media` parts of sounds and
        the frames of clips."""
        data = self._config.data
        with self._stages.spent("reading"):
            example = self._dataset.train[row]
            stored = {} if self._stored is None else self._stored[row]
        among = (example.caption, *example.others)
        which = int(choice * len(among))
        caption = among[which]
        stored = features.of_caption(stored, which, data.context_length)
        truth = caption or example.truth
        if "image.pooled" in stored:
            return Pair({}, caption, example.anchor_key, stored, truth)
        where = transforms.place(draw, data, may_flip=not data.augment_flip or not names_side(caption))
        with self._stages.spent("decoding"):
            found = inputs.of(example, data, where, media)
        return Pair(found, caption, example.anchor_key, stored, truth)

    def _read(self, step: int, position: int, row: int, *drawn: Any) -> tuple[int, Pair]:
        """The pair at a position of the global batch, and its row: another one's where that row cannot be read and may be skipped."""
        for attempt in range(_ATTEMPTS):
            try:
                self._faults.repeat(step=step, position=position, row=row)
                return row, self._pair(row, *drawn)
            except DataError as error:
                if self._config.data.on_error == "raise":
                    raise DataError(f"{error}; or leave such rows out: data.on_error = skip", kind=error.kind, shard=error.shard) from error
                self._faults.add(error, step=step, position=position, row=row, source=self.sampler.part_of(row).name)
                row = self.sampler.replacement(step, position, attempt, row)
        raise DataError(
            f"step {step}: {_ATTEMPTS} rows drawn one after the other cannot be read: the data cannot be reached", kind="remote"
        )

    def __call__(self, step: int) -> tuple[int, Batch]:
        step = int(step)
        data = self._config.data
        rows, beside = self.rows(step)[self._held], self.sampler.rows_beside(step)[self._held].tolist()
        augment = transforms.augmentation(self._config.seed, step, self._config.train.batch_size, data)[self._held]
        choice = order.generator(self._config.seed, step, order.CAPTION).random(self._config.train.batch_size)[self._held]
        media = order.generator(self._config.seed, step, order.MEDIA).random((self._config.train.batch_size, inputs.draws(data)))[
            self._held
        ]
        pairs: list[Pair] = []
        self._faults.asked(len(rows))
        places = zip(self._held.tolist(), rows.tolist(), choice.tolist(), augment.tolist(), media.tolist(), strict=True)
        for i, (position, row, *drawn) in enumerate(places):
            rows[i], pair = self._read(step, position, row, *drawn)
            pairs.append(pair if beside[i] < 0 else pair.beside(self._read(step, position, beside[i], *drawn)[1]))
        captions = [pair.caption for pair in pairs]
        found, present = inputs.stacked([pair.inputs for pair in pairs], data)
        with self._stages.spent("tokenising"):
            ids, mask = self._tokenizer.encode(captions)
            caption_id = hash_ids(captions)
        return step, Batch(
            inputs=found | {"text": Tokens(values=ids, mask=mask)},
            present=present | {"text": np.ones(len(rows), bool)},
            caption_id=caption_id,
            anchor_id=hash_ids(pair.anchor_key for pair in pairs),
            index=rows.astype(np.int32),
            stored=features.stacked([pair.stored for pair in pairs], tokens=self._config.objective.cla.enabled),
            paired=np.array([pair.paired for pair in pairs]) if data.unpaired_share else None,
            truth=_truth(pairs) if data.unpaired_share and data.truth_column else None,
        )


def _truth(pairs: Sequence[Pair]) -> UInt32[np.ndarray, "b 2"]:
    """Hashes of the captions that the pictures truly have, 0 where that is not known."""
    known = np.array([[pair.truth != ""] for pair in pairs])
    return np.where(known, hash_ids(pair.truth for pair in pairs), np.uint32(0))


def batches(
    dataset: DataSet,
    tokenizer: Tokenizer,
    config: Config,
    *,
    start_step: int,
    partners: order.PartnerLists | None = None,
    partner_share: Callable[[int], float] = lambda step: 0.0,
    shard: tuple[Sequence[int], int] = ((0,), 1),
    faults: Faults | None = None,
    stages: Stages | None = None,
    stored: FeatureFiles | None = None,
) -> Iterator[tuple[int, Batch]]:
    """Endless (step, batch) from `start_step` on, read ahead by `data.prefetch` batches in `data.threads` threads.

    The batch holds numpy arrays: this host's rows, in global order. `Batch.index` is the row of
    `dataset.train`. `partner_share` maps a step to the share of rows that partners replace.
    shard: (which, of how many) equal blocks of the batch are this host's. The blocks, one after the other, are the batch.
    faults: counts rows that cannot be read. Under data.on_error = "skip" each is replaced by one that (seed, step, its place) draw.
    stages: sums up where the readers spend their time.
    stored: what frozen towers made of the rows of `dataset.train`; pictures whose features are there are not decoded. None: nothing is.
    Raises ConfigError if a partner list could come too late (objective.bns.list_delay) or the hosts do not divide the batch.
    """
    data, delay = config.data, config.objective.bns.list_delay
    if partners is not None and delay <= data.prefetch + data.threads:
        raise ConfigError(
            f"objective.bns.list_delay = {delay} must be more than data.prefetch + data.threads = {data.prefetch} + {data.threads}: "
            "a partner list has to be there before its first batch is read"
        )
    build = BatchBuilder(
        dataset,
        tokenizer,
        config,
        partners=partners,
        partner_share=partner_share,
        shard=shard,
        faults=faults,
        stages=stages,
        stored=stored,
    )
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.prefetch)
    return iter(grain.MapDataset.range(start_step, _LAST_STEP).map(build).to_iter_dataset(options))


def anchor_batches(
    source: Source, config: DataConfig, anchor: str, batch_size: int, bad: set[int] | None = None
) -> Iterator[tuple[tuple[np.ndarray, ...], Bool[np.ndarray, " c"]]]:
    """(what the tower of an anchor takes, which of the c rows have it) over a source in its order, without augmentation: the middles of
    sounds and of equal parts of clips. Every batch has `batch_size` rows; past c, and where a row lacks the anchor, they are zeros.

    bad: takes the numbers of the rows that cannot be read, which are as if they lacked it; None: such a row raises DataError."""
    middles = [0.5] * inputs.draws(config)
    still = dataclasses.replace(config, video=dataclasses.replace(config.video, sampling="uniform"))
    one = dataclasses.replace(still, anchors=(anchor,))
    read = lambda row: inputs.of(source[row], still, transforms.square, middles, only=anchor)  # noqa: E731
    for start in range(0, len(source), batch_size):
        rows = range(start, min(start + batch_size, len(source)))
        found = [_or_bad(read, row, bad) or {} for row in rows]
        tokens = inputs.stacked([*found, *([{}] * (batch_size - len(found)))], one, whole=True)[0][anchor]
        yield ((tokens.values,) if tokens.mask is None else (tokens.values, tokens.mask)), np.array([anchor in row for row in found])


def eval_batches(
    source: Source, config: DataConfig, batch_size: int, bad: set[int] | None = None
) -> Iterator[tuple[UInt8[np.ndarray, "b S S 3"], int]]:
    """(images, count) over a source in its order, without augmentation. Every batch has `batch_size` rows; past `count`, they are black.

    bad: takes the numbers of the rows that cannot be read, which are black; None: such a row raises DataError."""
    size = config.image_size
    read = lambda row: transforms.crop(source[row].image, size, resample=config.resample)  # noqa: E731
    for start in range(0, len(source), batch_size):
        count = min(batch_size, len(source) - start)
        images = np.zeros((batch_size, size, size, 3), np.uint8)
        for i in range(count):
            if (image := _or_bad(read, start + i, bad)) is not None:
                images[i] = image
        yield images, count


def _or_bad(read: Callable[[int], T], row: int, bad: set[int] | None) -> T | None:
    """What `read` gives of a row; None, and the row among the bad ones, where it cannot be read and these are wanted."""
    try:
        return read(row)
    except DataError:
        if bad is None:
            raise
        bad.add(row)
        return None
