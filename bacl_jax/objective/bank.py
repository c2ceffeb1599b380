"""The memory bank: the last M pairs the model saw, as a ring buffer of ids, tokens and embeddings."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from bacl_jax.objective.shards import ONE_DEVICE, Shards, travel
from bacl_jax.objective.similarity import Rows, of_pairs
from bacl_jax.types import pytree


@pytree
class Bank:
    """Slot of global row g of step t: (t B + g) mod M. Embeddings are as old as the slot and only choose negatives."""

    caption_id: UInt32[Array, "M 2"]
    anchor_id: UInt32[Array, "M 2"]
    index: Int[Array, " M"]  # row of the training source; -1: the slot is empty
    ids: Int[Array, "M T"]
    mask: Bool[Array, "M T"]
    anchor: Float[Array, "M D"]  # embedding z of the anchor
    text: Float[Array, "M D"]  # embedding w of the caption
    cursor: Int[Array, ""]  # t B mod M
    stored: tuple[Any, ...] = ()  # arrays [M, ...] of what is stored of the captions beside their tokens (see bacl.Captions)
    paired: Bool[Array, " M"] | None = None  # False: anchor and caption were not given together; None: all were

    @property
    def filled(self) -> Bool[Array, " M"]:
        return self.index >= 0

    def texts(self) -> Rows:
        """The captions as columns: of each the newest copy."""
        newest = representative(self.caption_id, self.filled, oldest=self.cursor)
        anchor_id = of_pairs(self.anchor_id, self.paired, "column")
        return Rows(x=self.text, caption_id=self.caption_id, anchor_id=anchor_id, valid=newest)


def empty(
    size: int,
    context_length: int,
    embed_dim: int,
    stored: tuple[Any, ...] = (),
    *,
    unpaired: bool = False,
) -> Bank:
    """A bank of `size` empty slots. stored: shapes and types of what is stored of one row's caption.

    unpaired: some rows are no pairs.
    """
    return Bank(
        caption_id=jnp.zeros((size, 2), jnp.uint32),
        anchor_id=jnp.zeros((size, 2), jnp.uint32),
        index=jnp.full((size,), -1, jnp.int32),
        ids=jnp.zeros((size, context_length), jnp.int32),
        mask=jnp.zeros((size, context_length), bool),
        anchor=jnp.zeros((size, embed_dim)),
        text=jnp.zeros((size, embed_dim)),
        cursor=jnp.int32(0),
        stored=jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), stored),
        paired=jnp.ones(size, bool) if unpaired else None,
    )


def push(bank: Bank, *, write: Bool[Array, ""], shards: Shards = ONE_DEVICE, **rows: Any) -> Bank:
    """Write the rows of one step (fields of Bank, arrays [B, ...]) at the cursor; of more rows than slots the last M stay.

    The cursor moves on even where `write` is False (a skipped step), so that a row's slot depends on the step alone. Slots and
    rows lie over the devices: the rows travel past the slots, each device keeps those that are its own.
    """
    size, count = bank.index.shape[0], rows["index"].shape[0]

    def local(old: dict[str, Any], new: dict[str, Any], cursor: Array, write: Array) -> dict[str, Any]:
        slots, b = old["index"].shape[0], new["index"].shape[0]
        first = jax.lax.axis_index(shards.axes) * slots if shards.axes else 0

        def visit(old: dict[str, Any], new: dict[str, Any], luggage: Any, owner: Array) -> tuple[dict[str, Any], Any]:
            row = owner * b + jnp.arange(b)
            place = (cursor + row) % size - first
            mine = write & (row >= count - size) & (place >= 0) & (place < slots)
            place = jnp.where(mine, place, slots + jnp.arange(b))  # beyond the end: dropped
            put = lambda old, new: old.at[place].set(new, mode="drop", unique_indices=True)  # noqa: E731
            return jax.tree.map(put, old, new), luggage

        return travel(visit, old, new, (), shards.axes)[0]

    old = {name: getattr(bank, name) for name in rows}
    new = jax.tree.map(lambda old, x: jax.lax.stop_gradient(x).astype(old.dtype), old, rows)
    fields = shards.map(local, old, new, shared=(bank.cursor, write))
    return Bank(**fields, cursor=((bank.cursor + count) % size).astype(jnp.int32))


def representative(ids: UInt32[Array, "N 2"], valid: Bool[Array, " N"], oldest: Int[Array, ""] | int = 0) -> Bool[Array, " N"]:
    """True for one valid entry of every distinct id: the last one, in a ring that starts at `oldest`. O(N log N).

    Equal ids come together in stable sorts by one key, one after the other, by one compiled sort: a sort by four keys at once takes the
    TPU's compiler ten minutes and more.
    """
    n = ids.shape[0]
    keys = jnp.stack([ids[:, 1], ids[:, 0], (~valid).astype(jnp.uint32)])
    order = jax.lax.scan(lambda order, key: (order[jnp.argsort(key[order], stable=True)], None), (oldest + jnp.arange(n)) % n, keys)[0]
    s, v = ids[order], valid[order]
    last = jnp.any(s != jnp.roll(s, -1, axis=0), axis=1) | ~jnp.roll(v, -1)
    last = last.at[-1].set(True) & v
    return jnp.zeros(n, bool).at[order].set(last, unique_indices=True)
