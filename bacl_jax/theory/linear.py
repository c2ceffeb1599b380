"""Linear encoders: the closed form of MMCL, gradient descent by any form of its loss, the unimodal baseline, the filter by a teacher.

arXiv 2302.06232. With R = lambda/2 ||G1^T G2||_F^2 the minimum of the linear form has G1^T G2 = SVD_r(S) / lambda; features are judged by
the subspaces that the rows of G1 and G2 span. Dimension legend: n pairs, F and G features of the two sides, r of the embedding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from bacl_jax.objective import mmcl
from bacl_jax.theory.spiked import Rows, Spiked


class Fit(NamedTuple):
    """Orthonormal bases of what the encoders look at, and the weights of their directions: G1^T G2 = u diag(weight) v^T."""

    u: Float[Array, "F r"]
    v: Float[Array, "G r"]
    weight: Float[Array, " r"]


def closed_form(s: Float[Array, "F G"], rank: int) -> Fit:
    """The leading singular vectors of a cross-covariance, those of the largest values first."""
    u, values, vt = jnp.linalg.svd(s, full_matrices=False)
    return Fit(u[:, :rank], vt[:rank].T, values[:rank])


def sin_theta(found: Float[Array, "F r"], true: Float[Array, "F r"]) -> Float[Array, ""]:
    """Frobenius norm of the sines of the principal angles between two subspaces with orthonormal bases: in [0, sqrt(r)]."""
    return jnp.linalg.norm(true - found @ (found.T @ true))


def error(fit: Fit, model: Spiked) -> Float[Array, ""]:
    """The larger side's Frobenius sin-Theta."""
    return jnp.maximum(sin_theta(fit.u, model.u), sin_theta(fit.v, model.v))


def cross_covariance(x: Float[Array, "n F"], y: Float[Array, "n G"], weight: Float[Array, " n"]) -> Float[Array, "F G"]:
    """The centred cross-covariance of weighted pairs, divided by the sum of weights."""
    share = (weight / weight.sum())[:, None]
    return ((x - (share * x).sum(0, keepdims=True)) * share).T @ y


def unimodal(covariance: Float[Array, "F F"], rank: int) -> Float[Array, "F r"]:
    """What linear contrastive learning finds in one modality, with complementary random masks as augmentation (arXiv 2110.02473).

    Two views A x and (I - A) x, A a diagonal of fair coins. Their expected cross-covariance is a quarter of the covariance without its
    diagonal, so the solution is the leading eigenvectors of that. Noise along the coordinates falls out; other noise does not.
    """
    values, vectors = jnp.linalg.eigh(covariance - jnp.diag(jnp.diagonal(covariance)))
    return vectors[:, jnp.argsort(-values)[:rank]]


def keep_positive(pairs: Rows, fit: Fit) -> Bool[Array, " n"]:
    """The filter by a teacher: the pairs whose score <G1 x, G2 y> under a first fit is positive."""
    return ((pairs.x @ fit.u * fit.weight[None]) * (pairs.y @ fit.v)).sum(1) > 0


def initial(key: Key[Array, ""], features: tuple[int, int], rank: int, scale: float = 0.1) -> tuple[Array, Array]:
    """(G1, G2), small and random."""
    first, second = (
        scale * jax.random.normal(k, (rank, size)) / jnp.sqrt(1.0 * size) for k, size in zip(jax.random.split(key), features, strict=True)
    )
    return first, second


def regularised(encoders: tuple[Array, Array], x: Array, y: Array, form: mmcl.Form, strength: float) -> Float[Array, ""]:
    """Eq. 2.1 with R = strength/2 ||G1^T G2||_F^2. O(n^2) memory."""
    g1, g2 = encoders
    return mmcl.loss((x @ g1.T) @ (y @ g2.T).T, form) + strength / 2 * jnp.sum((g1.T @ g2) ** 2)


def spans(encoders: tuple[Array, Array], rank: int) -> Fit:
    """The fit that encoders stand for: the SVD of G1^T G2, by way of matrices of r columns."""
    (q1, r1), (q2, r2) = (jnp.linalg.qr(g.T) for g in encoders)
    inner = closed_form(r1 @ r2.T, rank)
    return Fit(q1 @ inner.u, q2 @ inner.v, inner.weight)


def descend(
    encoders: tuple[Array, Array], x: Array, y: Array, form: mmcl.Form, *, strength: float, rate: float, steps: int, every: int
) -> tuple[tuple[Array, Array], Fit]:
    """Gradient descent on all pairs at once.

    Gives the encoders at the end, and the fits after every `every` steps, one more axis in front. steps is a multiple of every.
    """

    def step(g: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        gradient = jax.grad(regularised)(g, x, y, form, strength)
        return jax.tree.map(lambda a, b: a - rate * b, g, gradient), None

    def stretch(g: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Fit]:
        g, _ = jax.lax.scan(step, g, None, length=every)
        return g, spans(g, len(g[0]))

    return jax.lax.scan(stretch, encoders, None, length=steps // every)
