"""Multi-positive InfoNCE, in log space, with the places where BNS enters: a weight per entry and extra columns."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bacl_jax.objective.similarity import MASKED
from bacl_jax.objective.tile import Term, Tile


def term(same_id: str) -> Term:
    """L_i = -mean_{p in P_i} l_ip + log( sum_j (1 + weight_ij) e^{l_ij} + sum_e e^{drawn_ie} ), one value a row and one a column.

    weight: k q_ic on BNS's in-batch candidates, 0 elsewhere: channel (a), since
            logaddexp(LSE l, LSE(l + log kq)) = LSE(l + log(1 + kq)). drawn: re-encoded captions, for the rows alone: channel (b).
    same_id "positive": rows of one caption or one anchor are all in P_i; "mask": P_i is the pair itself, the others are left out.
    The least it can be is log |P_i| (arXiv 2004.11362). A row without a positive has L_i = log sum_j ...
    """

    def masked(tile: Tile) -> tuple[Array, Array]:
        logits = tile.logits if tile.left_out is None else jnp.where(tile.left_out, MASKED, tile.logits)
        if same_id == "positive":
            return logits, tile.positive
        return jnp.where(tile.positive & ~tile.own, MASKED, logits), tile.own

    def add(sums: tuple, tile: Tile, axis: int) -> tuple:
        logits, positive = masked(tile)
        lse, attraction, count = sums
        weighted = logits + jnp.log1p(tile.row_weight if axis == 1 else tile.column_weight)
        return (
            jnp.logaddexp(lse, jax.nn.logsumexp(weighted, axis)),
            attraction + jnp.where(positive, logits, 0).sum(axis),
            count + positive.sum(axis),
        )

    def add_drawn(sums: tuple, logits: Array, valid: Array) -> tuple:
        return (jnp.logaddexp(sums[0], jax.nn.logsumexp(jnp.where(valid, logits, MASKED), 1)), *sums[1:])

    def grad(tile: Tile, row: tuple, column: tuple) -> Array:
        logits, positive = masked(tile)
        (g_row, (row_lse, row_count)), (g_column, (column_lse, column_count)) = row, column
        p_row = jnp.exp(logits - row_lse[:, None]) * (1 + tile.row_weight) * g_row[:, None]
        p_column = jnp.exp(logits - column_lse[None]) * (1 + tile.column_weight) * g_column[None]
        pull = jnp.where(positive, (g_row / row_count)[:, None] + (g_column / column_count)[None], 0)
        return p_row + p_column - pull

    def end(sums: tuple) -> tuple[Array, Array, tuple]:
        lse, attraction, count = *sums[:2], jnp.maximum(sums[2], 1)
        return lse - attraction / count, jnp.log(count), (lse, count)

    return Term(
        start=lambda size: (jnp.full(size, -jnp.inf), jnp.zeros(size), jnp.zeros(size)),
        add=add,
        add_drawn=add_drawn,
        end=end,
        grad=grad,
        grad_drawn=lambda logits, valid, row: jnp.where(valid, jnp.exp(logits - row[1][0][:, None]) * row[0][:, None], 0),
    )
