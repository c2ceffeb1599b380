"""A tile of the similarity matrix, and what a contrastive term has to say about one.

Dimension legend beyond types.py: b rows, t columns of a tile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bacl_jax.objective.similarity import Rows, cosine, positives
from bacl_jax.types import pytree


@pytree
class Side:
    """One side of the pairs: unit embeddings, ids, and BNS's in-batch candidates (K may be 0).

    paired: False where the row has no partner in the batch; None: all have. present: False where there is no such row: then it is in no
    sum; None: all are there; the columns' is not looked at. offset: what is added to the row's logits where a term
    compares them with its own, -nu l_ii of mmcl_term.py; None: nothing is.
    """

    x: Float[Array, "B D"]
    caption_id: Array  # uint32 [B, 2]
    anchor_id: Array  # uint32 [B, 2]
    candidate: Int[Array, "B K"]  # numbers of rows of the other side, over the whole batch
    weight: Float[Array, "B K"]  # k q
    paired: Bool[Array, " B"] | None = None
    present: Bool[Array, " B"] | None = None
    offset: Float[Array, " B"] | None = None


@pytree
class Affine:
    """What makes a logit of a cosine, once a row so that its gradient stays local: l = scale * s + bias."""

    scale: Float[Array, " B"]
    bias: Float[Array, " B"]

    def __call__(self, s: Float[Array, "b t"]) -> Float[Array, "b t"]:
        return self.scale[:, None] * s + self.bias[:, None]


class Tile(NamedTuple):
    """Logits of b rows against t columns and what is known of each pair. No sum holds what is `left_out` (None: nothing is)."""

    cosine: Float[Array, "b t"]
    logits: Float[Array, "b t"]  # scale * cosine + bias
    positive: Bool[Array, "b t"]
    own: Bool[Array, "b t"]
    row_weight: Float[Array, "b t"]
    column_weight: Float[Array, "b t"]
    left_out: Bool[Array, "b t"] | None = None
    row_offset: Float[Array, " b"] | None = None
    column_offset: Float[Array, " t"] | None = None


class Term(NamedTuple):
    """A contrastive term, a tile at a time.

    start(size): running sums of `size` rows or columns. add(sums, tile, axis): the tile's part, summed over `axis`.
    add_drawn(sums, logits, valid): extra columns. end(sums): the loss of each, the least it can be, and what `grad` needs of it.
    grad(tile, row, column): d loss / d logits, from the incoming (g, residual) of rows and of columns. grad_offset(row): d loss / d offset
    of rows or columns, where the term has them. The logits of extra columns have the row's offset added.
    """

    start: Callable[[int], Any]
    add: Callable[[Any, Tile, int], Any]
    add_drawn: Callable[[Any, Array, Array], Any]
    end: Callable[[Any], tuple[Array, Array, Any]]
    grad: Callable[[Tile, Any, Any], Array]
    grad_drawn: Callable[[Array, Array, Any], Array]
    grad_offset: Callable[[Any], Array] | None = None


def scatter(candidate: Int[Array, "a K"], weight: Float[Array, "a K"], start: Array | int, size: int) -> Float[Array, "a size"]:
    """The weights of the candidates that lie in [start, start + size), in their places."""
    place = candidate - start
    place = jnp.where((place >= 0) & (place < size), place, size)
    rows = jnp.arange(candidate.shape[0])[:, None]
    return jnp.zeros((candidate.shape[0], size)).at[rows, place].add(weight, mode="drop")


def make(rows: Side, columns: Side, affine: Affine, first_row: Array, first_column: Array) -> Tile:
    """The tile of some rows and some columns, whose places in the batch start at first_row and first_column."""
    b, t, s = rows.x.shape[0], columns.x.shape[0], cosine(rows.x, columns.x)
    positive, own = positives(rows, columns), first_row + jnp.arange(b)[:, None] == first_column + jnp.arange(t)[None]
    left_out = None
    if rows.paired is not None and columns.paired is not None:  # a probable partner is no negative, and no positive either
        both = rows.paired[:, None] & columns.paired[None]
        positive, own, left_out = positive & both, own & both, positive & ~both
    if rows.present is not None:
        gone = jnp.broadcast_to(~rows.present[:, None], positive.shape)
        positive, own, left_out = positive & ~gone, own & ~gone, gone if left_out is None else left_out | gone
    return Tile(
        cosine=s,
        logits=affine(s),
        positive=positive,
        own=own,
        row_weight=scatter(rows.candidate, rows.weight, first_column, t),
        column_weight=scatter(columns.candidate, columns.weight, first_row, b).T,
        left_out=left_out,
        row_offset=rows.offset,
        column_offset=columns.offset,
    )


def drawn_logits(rows: Side, affine: Affine, s: Float[Array, "b E"]) -> Float[Array, "b E"]:
    """Logits of cosines with drawn captions, with the rows' offsets."""
    return affine(s) if rows.offset is None else affine(s) + rows.offset[:, None]


def is_negative(rows: Side, drawn: Rows) -> Bool[Array, "b E"]:
    """Where a drawn caption is a negative of the row."""
    return ~positives(rows, drawn) & drawn.valid[None]
