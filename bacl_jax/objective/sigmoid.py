"""Sigmoid loss (SigLIP, arXiv 2303.15343) with several positives, BNS weights and drawn columns."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bacl_jax.objective.tile import Term, Tile


def term(same_id: str) -> Term:
    """L_i = -sum_j m_ij log sigmoid(y_ij l_ij), all of it counted with the rows; the bias is in l.

    y = +1 on positives, else -1; m = 1 + k q_ic on BNS's candidates, the mean of both sides. With same_id = "mask" the only
    positive is the diagonal and the others have m = 0. Drawn columns have y = -1. No floor is known: 0.
    """

    def parts(tile: Tile) -> tuple[Array, Array]:
        m, positive = 1 + (tile.row_weight + tile.column_weight) / 2, tile.positive
        if same_id == "mask":
            m, positive = jnp.where(positive & ~tile.own, 0, m), tile.own
        m = m if tile.left_out is None else jnp.where(tile.left_out, 0, m)
        return m, jnp.where(positive, 1, -1)

    def add(sums: Array, tile: Tile, axis: int) -> Array:
        if axis == 0:
            return sums
        m, y = parts(tile)
        return sums - (m * jax.nn.log_sigmoid(y * tile.logits)).sum(1)

    def grad(tile: Tile, row: tuple, column: tuple) -> Array:
        m, y = parts(tile)
        return -m * y * jax.nn.sigmoid(-y * tile.logits) * row[0][:, None]

    return Term(
        start=jnp.zeros,
        add=add,
        add_drawn=lambda sums, logits, valid: sums - jnp.where(valid, jax.nn.log_sigmoid(-logits), 0).sum(1),
        end=lambda sums: (sums, jnp.zeros_like(sums), ()),
        grad=grad,
        grad_drawn=lambda logits, valid, row: jnp.where(valid, jax.nn.sigmoid(logits), 0) * row[0][:, None],
    )
