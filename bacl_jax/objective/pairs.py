"""The batch as the objective sees it, and the groups in which it chooses some of its rows."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bacl_jax.objective.bank import representative
from bacl_jax.objective.shards import Shards, whole
from bacl_jax.objective.similarity import Rows, of_pairs
from bacl_jax.types import Features, pytree


@pytree
class Captions:
    """Token ids, and what the text tower made of them; None where it is not kept.

    stored: arrays [E, ...] that `encode_text` gets after ids and mask: what is stored of the captions, if anything.
    """

    text: Features | None
    ids: Array  # int32 [E, T]
    mask: Array  # bool [E, T]
    stored: tuple[Any, ...] = ()

    def inputs(self) -> tuple[Any, ...]:
        """What the text tower takes."""
        return self.ids, self.mask, *self.stored


@pytree
class Pairs:
    """The batch as the objective sees it: both towers' features and what identifies each row."""

    anchor: Features
    text: Features
    ids: Array  # int32 [B, T] caption tokens
    mask: Array  # bool [B, T]
    caption_id: Array  # uint32 [B, 2]
    anchor_id: Array  # uint32 [B, 2]
    inputs: Any = None  # what the anchors' tower made the features of, first dimension B, where their tokens are not kept
    stored: tuple[Any, ...] = ()  # what is stored of the captions, as in Captions
    paired: Array | None = None  # bool [B]; False where anchor and text are no pair; None: all are
    weight: Array | None = None  # float [B], of the pairs in L_contrast; None: 1
    present: Array | None = None  # bool [B]; False where the row has no anchor: its text is a further negative alone; None: all have one
    given: Array | None = None  # bool [B]; False where anchor and text were not given together, be they a probable pair; None: all were

    def captions(self) -> Captions:
        return Captions(text=self.text, ids=self.ids, mask=self.mask, stored=self.stored)

    def to_keep(self, *, stored: bool = False) -> dict[str, Any]:
        """What the bank keeps of each row, as `bank.push` takes it, but for its number in the source. stored: these, too."""
        ids = {"caption_id": self.caption_id, "anchor_id": self.anchor_id, "ids": self.ids, "mask": self.mask}
        ids |= {} if self.given is None else {"paired": self.given}
        return ids | {"anchor": self.anchor.pooled, "text": self.text.pooled} | ({"stored": self.stored} if stored else {})

    def anchors(self) -> Rows:
        """The anchors' side as columns: of each anchor one copy."""
        caption_id = of_pairs(self.caption_id, self.paired, "query")
        return Rows(x=self.anchor.pooled, caption_id=caption_id, anchor_id=self.anchor_id, valid=_one_of_each(self.anchor_id, self.present))

    def texts(self) -> Rows:
        """The texts' side as columns: of each caption one copy."""
        anchor_id = of_pairs(self.anchor_id, self.paired, "column")
        return Rows(x=self.text.pooled, caption_id=self.caption_id, anchor_id=anchor_id, valid=_one_of_each(self.caption_id))


def _one_of_each(ids: Array, among: Array | None = None) -> Array:
    return representative(ids, jnp.ones(ids.shape[0], bool) if among is None else among)


def even_rows(size: int, count: int) -> Int[Array, " n"]:
    """`count` of `size` rows, spread evenly."""
    return jnp.arange(count) * size // count


@dataclasses.dataclass(frozen=True)
class Groups:
    """The batch in equal parts, each on one device and in one micro-batch, that choose some of their rows apart from each other.

    So a chosen row never leaves its device, and the same number of parts chooses the same rows on any mesh that it suits.
    """

    count: int
    rows: int  # of one group

    @classmethod
    def of(cls, batch: int, wanted: int, shards: Shards) -> "Groups":
        """At least `wanted` and one a micro-batch of a device: their least common multiple.

        ValueError where the batch does not divide by it.
        """
        count = math.lcm(wanted, shards.count * shards.parts)
        if batch % count:
            raise ValueError(
                f"a batch of {batch} does not divide into {count} groups "
                f"(objective.groups {wanted}, {shards.count} devices, {shards.parts} parts): "
                f"take train.batch_size {batch // count * count or count} or {(batch // count + 1) * count}"
            )
        return cls(count, batch // count)

    def share(self, share: float, of: int | None = None) -> int:
        """Rows that a group chooses of its `of` rows (None: all), for a share of the batch; at least one."""
        return min(max(round(share * self.rows), 1), of or self.rows)

    def take(self, tree: Any, place: Int[Array, "G n"]) -> Any:
        """The rows of arrays [G r, ...], r a group, at places in each group: [G n, ...], without leaving the device."""
        each = jax.vmap(lambda x, place: x[place])
        return jax.tree.map(lambda x: whole(each(x.reshape(self.count, -1, *x.shape[1:]), place)), tree)
