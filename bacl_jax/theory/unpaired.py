"""Unpaired data for linear MMCL (arXiv 2302.06232): a first fit from a few pairs finds partners among unpaired rows.

A round detects, then refits. Detection: soft weights softmax_j(s_ij / tau) of the cosines s_ij of embeddings, both ways; a pair counts
where each is the other's nearest (mutual) and both hold the other for likely (confident). Refit: the cross-covariance of the given
pairs and the found ones, a found pair weighted by its confidence. tau falls from round to round. The paper's exact loss is not readable
in any source: the rounds are this project's. Dimension legend: N unpaired rows of a side, n given pairs, F and G features, r.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from bacl_jax.theory import linear

TAUS = (0.05, 0.035, 0.025, 0.02)  # of the rounds
CONFIDENCE = 0.5  # the least soft weight, both ways, of a pair that counts
CHUNK = 500  # rows of the first side whose scores exist at a time


class Found(NamedTuple):
    """Of each row of the first side: the nearest row of the other, the smaller of the two soft weights (where the two
    are each other's nearest), and whether the pair counts."""

    partner: Int32[Array, " N"]
    confidence: Float32[Array, " N"]
    counts: Bool[Array, " N"]


class Round(NamedTuple):
    """What a round found, with which fit, and the fit that it made."""

    found: Found
    fit: linear.Fit


def embed(x: Float[Array, "N F"], basis: Float[Array, "F r"], weight: Float[Array, " r"]) -> Float32[Array, "N r"]:
    """Unit vectors: the coordinates in a fit's basis times the roots of its singular values. float32, since scores are only compared."""
    z = (x @ basis * jnp.sqrt(weight)[None]).astype(jnp.float32)
    return z / jnp.linalg.norm(z, axis=1, keepdims=True)


def detect(z: Float32[Array, "N r"], w: Float32[Array, "N r"], tau: float | Float[Array, ""]) -> Found:
    """Mutual nearest neighbours and how sure they are. N: at most CHUNK or a multiple of it. O(CHUNK N) memory, O(N^2 r) time."""
    n = len(z)
    chunk = min(CHUNK, n)
    if n % chunk:
        raise ValueError(f"{n} unpaired rows: must be a multiple of {chunk}")
    tau = jnp.asarray(tau, jnp.float32)

    def of_rows(columns: Any, part: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array]]:
        top, row, total = columns  # of the rows so far: a column's largest score, whose it is, the sum of exp((s - 1) / tau)
        first, rows = part
        s = rows @ w.T
        e = jnp.exp((s - 1) / tau)  # cosines: at most 1
        near, nearest, largest = jax.lax.argmax(s, 1, jnp.int32), jax.lax.argmax(s, 0, jnp.int32), s.max(0)
        columns = (jnp.maximum(top, largest), jnp.where(largest > top, first + nearest, row), total + e.sum(0))
        return columns, (near, e.max(1) / e.sum(1))

    start = (jnp.full(n, -2, jnp.float32), jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.float32))
    parts = (jnp.arange(0, n, chunk, dtype=jnp.int32), z.reshape(n // chunk, chunk, -1))
    (top, row, total), (partner, weight) = jax.lax.scan(of_rows, start, parts)
    partner = partner.reshape(n)
    confidence = jnp.minimum(weight.reshape(n), (jnp.exp((top - 1) / tau) / total)[partner])
    return Found(partner, confidence, (row[partner] == jnp.arange(n)) & (confidence >= CONFIDENCE))


def refine(
    given: tuple[Float[Array, "n F"], Float[Array, "n G"]],
    unpaired: tuple[Float[Array, "N F"], Float[Array, "N G"]],
    rank: int,
    taus: Sequence[float] = TAUS,
) -> tuple[linear.Fit, Round]:
    """The fit of the given pairs alone, and the rounds, stacked along a first axis: one for each of taus."""

    def fit(x: Array, y: Array, weight: Array) -> linear.Fit:
        return linear.closed_form(linear.cross_covariance(x, y, weight), rank)

    def one(last: linear.Fit, tau: Array) -> tuple[linear.Fit, Round]:
        found = detect(embed(unpaired[0], last.u, last.weight), embed(unpaired[1], last.v, last.weight), tau)
        x, y = (jnp.concatenate(both) for both in ((given[0], unpaired[0]), (given[1], unpaired[1][found.partner])))
        weight = jnp.concatenate([jnp.ones(len(given[0]), x.dtype), jnp.where(found.counts, found.confidence, 0).astype(x.dtype)])
        now = fit(x, y, weight)
        return now, Round(found, now)

    first = fit(*given, jnp.ones(len(given[0]), given[0].dtype))
    return first, jax.lax.scan(one, first, jnp.asarray(taus, jnp.float32))[1]


def judge(found: Found, true: Int32[Array, " N"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(precision, recall) of the pairs that count; true: each row's own partner. Precision is 0 where none counts."""
    right = (found.counts & (found.partner == true)).sum()
    return right / jnp.maximum(found.counts.sum(), 1), right / len(true)
