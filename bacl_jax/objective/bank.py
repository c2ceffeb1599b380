"""The memory bank: the last M pairs the model saw, as a ring buffer of ids, tokens and embeddings."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

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

    @property
    def filled(self) -> Bool[Array, " M"]:
        return self.index >= 0


def empty(size: int, context_length: int, embed_dim: int) -> Bank:
    """A bank of `size` empty slots."""
    return Bank(
        caption_id=jnp.zeros((size, 2), jnp.uint32),
        anchor_id=jnp.zeros((size, 2), jnp.uint32),
        index=jnp.full((size,), -1, jnp.int32),
        ids=jnp.zeros((size, context_length), jnp.int32),
        mask=jnp.zeros((size, context_length), bool),
        anchor=jnp.zeros((size, embed_dim)),
        text=jnp.zeros((size, embed_dim)),
        cursor=jnp.int32(0),
    )


def push(bank: Bank, *, write: Bool[Array, ""], **rows: Array) -> Bank:
    """Write the rows of one step (fields of Bank, [B, ...]) at the cursor; of more rows than slots the last M stay.

    The cursor moves on even where `write` is False (a skipped step), so that a row's slot depends on the step alone.
    """
    size, count = bank.index.shape[0], rows["index"].shape[0]
    kept = min(size, count)
    slots = (bank.cursor + (count - kept) + jnp.arange(kept)) % size
    fields = {}
    for name, new in rows.items():
        old = getattr(bank, name)
        values = new[count - kept :].astype(old.dtype)
        keep = write.reshape((1,) * values.ndim)
        fields[name] = old.at[slots].set(jnp.where(keep, values, old[slots]), unique_indices=True)
    return Bank(**fields, cursor=((bank.cursor + count) % size).astype(jnp.int32))


def representative(ids: UInt32[Array, "N 2"], valid: Bool[Array, " N"]) -> Bool[Array, " N"]:
    """True for one valid entry of every distinct id: the last one. O(N log N)."""
    n = ids.shape[0]
    order = jnp.lexsort((jnp.arange(n), ids[:, 0], ids[:, 1], ~valid))
    s, v = ids[order], valid[order]
    last = jnp.any(s != jnp.roll(s, -1, axis=0), axis=1) | ~jnp.roll(v, -1)
    last = last.at[-1].set(True) & v
    return jnp.zeros(n, bool).at[order].set(last, unique_indices=True)


def tiles(size: int, at_most: int) -> int:
    """The largest divisor of `size` that is no larger than `at_most`: rows of one tile of a scan over the bank."""
    return next(t for t in range(min(size, at_most), 0, -1) if size % t == 0)
