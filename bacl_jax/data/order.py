"""Which rows make up a step: pure functions of (seed, step), and the partner lists of BNS channel (c).

Dimension legend: B rows of the global batch, n rows of the training source, M slots of the memory bank, m rows that have partners,
k partners of a row.
"""

import dataclasses
import functools
import threading
from collections.abc import Sequence

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int, Int32, Int64

AUGMENTATION, PARTNER, CAPTION, REPLACEMENT, MEDIA = 1, 2, 3, 4, 9  # streams of `generator`; 5 to 8 are the sampler's
_ROUNDS = 4  # of the block cipher behind index_shuffle; grain's own default
_TABLE_BELOW = 2**14  # rows; index_shuffle walks a domain of at least 2^16, 10 ms a row for n = 2, where a table costs microseconds


def generator(seed: int, step: int, stream: int) -> np.random.Generator:
    """Counter-based random numbers of (seed, step, stream); the r-th draw belongs to global row r, whatever the number of hosts."""
    return np.random.Generator(np.random.Philox(key=np.random.SeedSequence([seed, step, stream]).generate_state(2, np.uint64)))


def batch_rows(seed: int, step: int, batch_size: int, n: int, stream: Sequence[int] = ()) -> Int64[np.ndarray, " B"]:
    """The training rows of a step: positions step * B ... + B - 1 of an endless sequence of shuffled epochs.

    Each epoch holds each of the n rows once, in an order of its own; a batch may span the edge of two (or, if B > n, more) epochs.
    Any step is reached directly; for large n no table is made either (`grain.experimental.index_shuffle`, about 2 us a row).
    stream: words of the seed beside (seed, epoch), which tell sequences with one seed apart.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"an order needs at least one row and one row a batch, found n = {n}, batch_size = {batch_size}")
    first, end = step * batch_size, (step + 1) * batch_size
    epochs = range(first // n, (end - 1) // n + 1)
    return np.concatenate(
        [permuted([seed, epoch, *stream], n, range(max(first - epoch * n, 0), min(end - epoch * n, n))) for epoch in epochs]
    )


def permuted(seed: Sequence[int], n: int, positions: range) -> Int64[np.ndarray, " b"]:
    """What stands at some positions of the permutation of n rows that `seed` names; about 2 us a row, and no table for large n."""
    if n < _TABLE_BELOW:
        return _table(tuple(seed), n)[positions.start : positions.stop]
    return np.array([index_shuffle(position, n - 1, _cipher_seed(tuple(seed)), _ROUNDS) for position in positions], np.int64)


@functools.lru_cache(maxsize=64)  # of at most 128 KiB
def _table(seed: tuple[int, ...], n: int) -> Int64[np.ndarray, " n"]:
    table = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).permutation(n)
    table.flags.writeable = False  # it is kept: whoever changes rows takes a copy
    return table


@functools.lru_cache(maxsize=64)
def _cipher_seed(seed: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def replacement(seed: int, step: int, position: int, attempt: int, n: int) -> int:
    """The row that stands in for one that cannot be read, at a position of a step's global batch; drawn anew for each attempt."""
    words = np.random.SeedSequence([seed, step, REPLACEMENT, position, attempt]).generate_state(1, np.uint64)
    return int(words[0] % n)


@dataclasses.dataclass(frozen=True)
class PartnerList:
    """Hard partners of training rows, in force from step `active_from` until a newer list is.

    rows: the training rows that have partners, ascending. partners: training rows beside each of them; -1 = none, in any slot.
    Memory O(m k), m at most the slots of the memory bank, whatever the size of the training source.
    """

    active_from: int
    rows: Int64[np.ndarray, " m"]
    partners: Int32[np.ndarray, "m k"]

    def __post_init__(self) -> None:
        if (np.diff(self.rows, prepend=-1) <= 0).any():
            raise ValueError(f"the rows of a partner list must be sorted, unique and at least 0, found {self.rows}")

    @classmethod
    def from_bank(cls, active_from: int, index: Int[np.ndarray, " M"], partners: Int[np.ndarray, "M k"]) -> "PartnerList":
        """The list of the bank's slots: `index` names each slot's training row, -1 an empty slot.

        A row that is in several slots takes the partners of the last one; a row without any is left out.
        """
        filled = np.flatnonzero(index >= 0)[::-1]  # the last slot first: unique takes the first of each row
        rows, place = np.unique(index[filled], return_index=True)
        found = partners[filled[place]]
        has_any = (found >= 0).any(axis=1)
        return cls(active_from, rows[has_any].astype(np.int64), found[has_any].astype(np.int32))

    def of(self, rows: Int[np.ndarray, " b"]) -> Int32[np.ndarray, "b k"]:
        """The partners of each of the rows, all -1 where it has none; O(b log m)."""
        place = np.searchsorted(self.rows, rows)
        known = place < len(self.rows)
        known[known] = self.rows[place[known]] == rows[known]
        found = np.full((len(rows), self.partners.shape[1]), -1, np.int32)
        found[known] = self.partners[place[known]]
        return found


class PartnerLists:
    """Thread-safe holder of the lists in force and to come; what a checkpoint saves of them is `live(step)`.

    The loader asks ahead of the training step, so a list must arrive before the first step it acts on is asked for; `put` refuses one
    that comes too late, since the content of a step would then depend on timing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lists: list[PartnerList] = []
        self._asked = -1
        self._replaced: dict[int, int] = {}

    def put(self, partner_list: PartnerList) -> None:
        """Add a list; one with the same `active_from` is replaced. Raises RuntimeError if a step it acts on was already read."""
        with self._lock:
            if partner_list.active_from <= self._asked:
                raise RuntimeError(
                    f"a partner list for step {partner_list.active_from} came after step {self._asked} was read; "
                    "raise objective.bns.list_delay or lower data.prefetch and data.threads"
                )
            kept = [each for each in self._lists if each.active_from != partner_list.active_from]
            self._lists = sorted([*kept, partner_list], key=lambda each: each.active_from)

    def at(self, step: int) -> PartnerList | None:
        """The newest list with active_from <= step, or None."""
        with self._lock:
            self._asked = max(self._asked, step)
            return next((each for each in reversed(self._lists) if each.active_from <= step), None)

    def count(self, step: int, replaced: int) -> None:
        """So many rows of a step's global batch are partners in place of the rows that the order gave."""
        with self._lock:
            self._replaced[step] = replaced

    def replaced_at(self, step: int) -> int:
        """What `count` was told of a step, 0 where nothing; forgets the steps before."""
        with self._lock:
            self._replaced = {at: replaced for at, replaced in self._replaced.items() if at >= step}
            return self._replaced.get(step, 0)

    def live(self, step: int) -> tuple[PartnerList, ...]:
        """The lists that steps >= `step` need: the one in force and those to come, by active_from."""
        with self._lock:
            current = max((each.active_from for each in self._lists if each.active_from <= step), default=step)
            return tuple(each for each in self._lists if each.active_from >= current)

    def drop_before(self, step: int) -> None:
        """Forget the lists that no step >= `step` needs."""
        live = self.live(step)
        with self._lock:
            self._lists = [each for each in self._lists if each in live or each.active_from >= step]


def with_partners(rows: Int64[np.ndarray, " B"], partners: PartnerList, share: float, seed: int, step: int) -> Int64[np.ndarray, " B"]:
    """Replace the last round(share * B) rows of a global batch by partners of the first ones.

    Replaced row r belongs to anchor row r mod (B - replaced), and takes one of the anchor's valid partners, drawn by (seed, step, r).
    A row whose anchor has no partner keeps its own content. At least one row stays. share in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share of partners must lie in [0, 1], found {share}")
    batch_size = len(rows)
    replaced = min(round(share * batch_size), batch_size - 1)
    if replaced == 0:
        return rows
    target = np.arange(batch_size - replaced, batch_size)
    candidates = partners.of(rows[target % (batch_size - replaced)])
    valid = candidates >= 0
    count = valid.sum(axis=1)
    draw = generator(seed, step, PARTNER).random(batch_size)[target]
    slot = np.argsort(~valid, axis=1, kind="stable")[np.arange(replaced), (draw * count).astype(np.int64)]
    chosen = candidates[np.arange(replaced), slot]
    result = rows.copy()
    result[target] = np.where(count > 0, chosen, rows[target])
    return result
