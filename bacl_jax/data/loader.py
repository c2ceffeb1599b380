"""The input pipeline: a step's batch is a pure function of (seed, step) and of the partner list in force, on any number of hosts.

Dimension legend: B rows of the global batch (b of this host), S pixels a side, T tokens a caption.
"""

from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from jaxtyping import UInt8

from bacl_jax.config import Config, ConfigError, DataConfig
from bacl_jax.data import order, transforms
from bacl_jax.data.source import DataSet, Source, hash_ids
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.types import Batch, Tokens

_LAST_STEP = 2**31 - 1


class BatchBuilder:
    """step -> this host's rows of the batch. Thread safe; the captions are tokenised once, here."""

    def __init__(
        self,
        dataset: DataSet,
        tokenizer: Tokenizer,
        config: Config,
        *,
        partners: order.PartnerLists | None,
        partner_share: Callable[[int], float],
        shard: tuple[Sequence[int], int],
    ):
        self._dataset, self._config = dataset, config
        self._partners, self._partner_share = partners, partner_share
        self._ids, self._mask = tokenizer.encode(dataset.captions)
        self._caption_ids = hash_ids(dataset.captions)
        held, blocks = shard
        batch_size = config.train.batch_size
        if batch_size % blocks:
            raise ConfigError(f"train.batch_size = {batch_size} must be a multiple of the number of blocks that processes hold, {blocks}")
        self._held = np.arange(batch_size).reshape(blocks, -1)[list(held)].ravel()

    def rows(self, step: int) -> np.ndarray:
        """Training rows of the whole global batch, int64 [B]."""
        config = self._config
        rows = order.batch_rows(config.seed, step, config.train.batch_size, len(self._dataset.train))
        current = self._partners.at(step) if self._partners is not None else None
        if current is None:
            return rows
        return order.with_partners(rows, current.partners, self._partner_share(step), config.seed, step)

    def __call__(self, step: int) -> tuple[int, Batch]:
        step = int(step)
        data = self._config.data
        rows = self.rows(step)[self._held]
        augment = transforms.augmentation(self._config.seed, step, self._config.train.batch_size, data)[self._held]
        images = np.empty((len(rows), data.image_size, data.image_size, 3), np.uint8)
        anchor_keys = []
        for i, (row, (scale, x, y, flip)) in enumerate(zip(rows.tolist(), augment.tolist(), strict=True)):
            example = self._dataset.train[row]
            images[i] = transforms.crop(example.image, data.image_size, scale=scale, shift=(x, y), flip=flip > 0)
            anchor_keys.append(example.anchor_key)
        captions = self._dataset.train_caption[rows]
        present = np.ones(len(rows), bool)
        return step, Batch(
            inputs={"image": Tokens(values=images), "text": Tokens(values=self._ids[captions], mask=self._mask[captions])},
            present={"image": present, "text": present},
            caption_id=self._caption_ids[captions],
            anchor_id=hash_ids(anchor_keys),
            index=rows.astype(np.int32),
        )


def batches(
    dataset: DataSet,
    tokenizer: Tokenizer,
    config: Config,
    *,
    start_step: int,
    partners: order.PartnerLists | None = None,
    partner_share: Callable[[int], float] = lambda step: 0.0,
    shard: tuple[Sequence[int], int] = ((0,), 1),
) -> Iterator[tuple[int, Batch]]:
    """Endless (step, batch) from `start_step` on, read ahead by `data.prefetch` batches in `data.threads` threads.

    The batch holds numpy arrays: this host's rows, in global order. `Batch.index` is the row of
    `dataset.train`. `partner_share` maps a step to the share of rows that partners replace.
    shard: (which, of how many) equal blocks of the batch are this host's. The blocks, one after the other, are the batch.
    Raises ConfigError if a partner list could come too late (objective.bns.list_delay) or the hosts do not divide the batch.
    """
    data, delay = config.data, config.objective.bns.list_delay
    if partners is not None and delay <= data.prefetch + data.threads:
        raise ConfigError(
            f"objective.bns.list_delay = {delay} must be more than data.prefetch + data.threads = {data.prefetch} + {data.threads}: "
            "a partner list has to be there before its first batch is read"
        )
    build = BatchBuilder(dataset, tokenizer, config, partners=partners, partner_share=partner_share, shard=shard)
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.prefetch)
    return iter(grain.MapDataset.range(start_step, _LAST_STEP).map(build).to_iter_dataset(options))


def eval_batches(source: Source, config: DataConfig, batch_size: int) -> Iterator[tuple[UInt8[np.ndarray, "b S S 3"], int]]:
    """(images, count) over a source in its order, without augmentation. Every batch has `batch_size` rows; past `count`, they are black."""
    size = config.image_size
    for start in range(0, len(source), batch_size):
        count = min(batch_size, len(source) - start)
        images = np.zeros((batch_size, size, size, 3), np.uint8)
        for i in range(count):
            images[i] = transforms.crop(source[start + i].image, size)
        yield images, count
