"""Which training rows a step reads: one or several sources, each shuffled whole or block by block. Pure functions of (seed, step).

A source gives the same number A of rows to every batch, so its rows are an endless sequence of epochs, and step s reads the positions
s A ... (s + 1) A - 1 of it; each epoch holds each row once. Nothing depends on the number of hosts, and any step is reached directly.

Dimension legend: B rows of the global batch, A of them from one source, n rows of a source.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import order
from bacl_jax.data.source import Part

_MOST_ROWS = 2**31 - 1  # a batch's rows are int32
_MIXTURE, _BLOCK, _SHORT, _WINDOW = 5, 6, 7, 8  # streams of the seed, beside those of order.py


class Sampler:
    """The rows of any step's global batch. Rows of part k follow those of the parts before it, as in the training source."""

    def __init__(self, seed: int, batch_size: int, parts: Sequence[Part], config: DataConfig):
        self._seed, self.parts = seed, tuple(parts)
        first = [part for part in parts if not part.beside]
        counts = iter(share_out([part.weight for part in first], batch_size, [part.name for part in first], config.unpaired_share))
        found: list[int] = []
        for part in parts:
            found.append(found[-1] if part.beside else next(counts))
        self.counts = tuple(found)
        self._source = interleaved([0 if part.beside else count for part, count in zip(parts, self.counts, strict=True)])
        self._begins = np.cumsum([0, *(part.rows for part in parts if part.start is None)])
        if self._begins[-1] > _MOST_ROWS:
            raise ConfigError(
                f"{self._begins[-1]:,} training rows: at most {_MOST_ROWS:,} fit into a batch's row numbers; leave some shards out"
            )
        self._blocks = Blocks(config.block_rows, config.block_window, config.block_lanes) if config.shuffle == "block" else None

    def rows(self, step: int) -> Int64[np.ndarray, " B"]:
        """Rows of the training source, in the batch's order."""
        return self._placed(step, beside=False)

    def rows_beside(self, step: int) -> Int64[np.ndarray, " B"]:
        """The second row of each place, by the parts that stand beside others; -1 where there is none."""
        return self._placed(step, beside=True)

    def _placed(self, step: int, *, beside: bool) -> Int64[np.ndarray, " B"]:
        rows = np.full(len(self._source), -1, np.int64)
        for number, (part, count) in enumerate(zip(self.parts, self.counts, strict=True)):
            if part.beside == beside:
                start = self._begins[number] if part.start is None else part.start
                rows[self._source == number - beside] = start + self._part(number, step, count, part.rows)
        return rows

    def _part(self, number: int, step: int, count: int, n: int) -> Int64[np.ndarray, " A"]:
        stream = [_MIXTURE, number] * (len(self.parts) > 1)
        if self._blocks is None:
            return order.batch_rows(self._seed, step, count, n, stream)
        return self._blocks.batch_rows(self._seed, step, count, n, stream)

    def replacement(self, step: int, position: int, attempt: int, row: int) -> int:
        """The row that stands in for `row`, which cannot be read, at a position of the batch: one of the same source."""
        number = self._number(row)
        return int(self._begins[number]) + order.replacement(self._seed, step, position, attempt, self.parts[number].rows)

    def part_of(self, row: int) -> Part:
        """The part that a row of the training source belongs to."""
        return self.parts[self._number(row)]

    def _number(self, row: int) -> int:
        return int(np.searchsorted(self._begins, row, side="right")) - 1

    def epochs(self, step: int) -> dict[str, float]:
        """How often each part was read through in the steps before `step`, by name; rows that partners replace are counted as read."""
        return {part.name: step * count / part.rows for part, count in zip(self.parts, self.counts, strict=True)}


def share_out(weights: Sequence[float], batch_size: int, names: Sequence[str], unpaired_share: float = 0.0) -> tuple[int, ...]:
    """Rows of each batch that each source gives: in proportion to its weight, rounded by largest remainders.

    unpaired_share: above 0, the field that the weights come from: of pairs, then of rows that are none. Raises ConfigError for a source
    that gives none.
    """
    exact = np.array(weights, np.float64) * batch_size / sum(weights)
    counts = np.floor(exact).astype(int)
    for number in np.argsort(counts - exact, kind="stable")[: batch_size - counts.sum()]:
        counts[number] += 1
    for number in np.flatnonzero(counts == 0).tolist():
        field, change = "config.data.sources", "raise its weight"
        if unpaired_share:
            field, change = f"config.data.unpaired_share = {unpaired_share}", "raise it" if number else "lower it"
        raise ConfigError(
            f"{field}: {names[number]} has a share of {exact[number] / batch_size:.2g}, no row in a batch of {batch_size}; "
            f"{change} or raise train.batch_size"
        )
    return tuple(counts.tolist())


def interleaved(counts: Sequence[int]) -> Int64[np.ndarray, " B"]:
    """The source of each position of a batch, every one spread evenly: each host's part of the batch holds about the same mixture."""
    place = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(place, kind="stable")]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A shuffle that reads `rows` neighbouring rows (a block) at about the same time, so that a disk or server reads in sequence.

    An epoch is a permutation of the blocks, one after the other, and the last, shorter block somewhere among them. It is cut into `lanes`
    equal parts. A batch consists of as many equal runs of positions, each of which follows its own lane, so that hosts that read
    different parts of a batch read different blocks, however many (up to `lanes`) they are. Within a lane, `window` positions are
    permuted at a time: so many rows of a lane are in use at once. The lanes' windows do not begin together.
    """

    rows: int
    window: int
    lanes: int

    def batch_rows(self, seed: int, step: int, count: int, n: int, stream: Sequence[int]) -> Int64[np.ndarray, " A"]:
        """The rows at positions step * count ... (step + 1) * count - 1 of the endless sequence of epochs of n rows."""
        first, found = step * count, []
        for lane in range(self.lanes):
            low, high = self._edge(lane, count), self._edge(lane + 1, count)
            start, stop = first + low, first + high
            while start < stop:
                epoch = start // n
                until = min(stop, (epoch + 1) * n)
                found.append(self._lane_rows([seed, epoch, *stream], lane, count, n, epoch, range(start, until)))
                start = until
        return np.concatenate(found)

    def _edge(self, lane: int, count: int) -> int:
        """Where the lane's run begins in a batch of `count` rows."""
        return -(-lane * count // self.lanes)

    def _before(self, position: int, lane: int, count: int) -> int:
        """How many positions of the endless sequence before `position` belong to the lane."""
        low, high = self._edge(lane, count), self._edge(lane + 1, count)
        batches, within = divmod(position, count)
        return batches * (high - low) + min(max(within - low, 0), high - low)

    def _lane_rows(self, key: list[int], lane: int, count: int, n: int, epoch: int, positions: range) -> Int64[np.ndarray, " a"]:
        """Rows at positions of one epoch that lie in one run of a lane."""
        lengths = [self._before((epoch + 1) * n, each, count) - self._before(epoch * n, each, count) for each in range(lane + 1)]
        start = self._before(positions.start, lane, count) - self._before(epoch * n, lane, count)
        shift = self.window * lane // self.lanes  # the lane's first window is so much shorter
        at, stop = start + shift, start + shift + len(positions)
        found = []
        while at < stop:
            number = at // self.window
            low, high = max(number * self.window, shift), min((number + 1) * self.window, shift + lengths[-1])
            until = min(stop, high)
            found.append(low - shift + order.permuted([*key, _WINDOW, lane, number], high - low, range(at - low, until - low)))
            at = until
        return self._in_storage(key, n, sum(lengths[:-1]) + np.concatenate(found))

    def _in_storage(self, key: list[int], n: int, places: Int64[np.ndarray, " a"]) -> Int64[np.ndarray, " a"]:
        """The rows at places of the epoch's sequence of blocks."""
        whole, rest = divmod(n, self.rows)
        words = np.random.SeedSequence([*key, _SHORT]).generate_state(1, np.uint64)
        short = int(words[0] % (whole + 1)) * self.rows  # where the block of `rest` rows begins
        behind = places >= short + rest
        number, within = np.divmod(places - rest * behind, self.rows)
        inside = ~behind & (places >= short)
        unique, inverse = np.unique(number[~inside], return_inverse=True)
        blocks = [int(order.permuted([*key, _BLOCK], whole, range(block, block + 1))[0]) for block in unique.tolist()]
        rows = np.empty(len(places), np.int64)
        rows[inside] = n - rest + places[inside] - short
        rows[~inside] = np.array(blocks, np.int64)[inverse] * self.rows + within[~inside]
        return rows
