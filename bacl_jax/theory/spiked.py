"""The spiked-covariance model of paired data (arXiv 2302.06232), and two ways to draw from it: its rows, or their moments alone.

    x = U z + xi,  y = V z' + xi',  U and V orthonormal, z, xi, xi' Gaussian;  z' = z with probability p (the clean share), else drawn anew

Noise has any covariance: of different strength along the coordinates, or along directions of its own.
Dimension legend: n rows, F and G features of the two sides, r of the signal, D = F + G.
"""

import math
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

Number = float | int | Num[Array, ""]


class Spiked(NamedTuple):
    """U, V, the standard deviations of z, and roots of the noise's covariances: xi = noise_x @ a standard normal vector."""

    u: Float[Array, "F r"]
    v: Float[Array, "G r"]
    signal: Float[Array, " r"]
    noise_x: Float[Array, "F F"]
    noise_y: Float[Array, "G G"]


class Rows(NamedTuple):
    """Pairs, and which of them are true ones."""

    x: Float[Array, "n F"]
    y: Float[Array, "n G"]
    clean: Bool[Array, " n"]


def normals(key: Key[Array, ""], *shapes: tuple[int, ...]) -> list[Array]:
    """Standard normal arrays, drawn as one: a draw in float64 takes seconds to compile."""
    sizes = [math.prod(shape) for shape in shapes]
    flat = jax.random.normal(key, (sum(sizes),))
    return [part.reshape(shape) for part, shape in zip(jnp.split(flat, list(accumulate(sizes))[:-1]), shapes, strict=True)]


def orthonormal(normal: Float[Array, "size rank"]) -> Float[Array, "size rank"]:
    """Uniform among the frames of `rank` orthonormal columns, of standard normals."""
    return jnp.linalg.qr(normal)[0]


def draw(
    key: Key[Array, ""],
    signal: Float[Array, " r"],
    noise_x: Float[Array, " F"],
    noise_y: Float[Array, " G"],
    *,
    turned: bool = False,
) -> Spiked:
    """A model with random U and V. noise: standard deviations along the coordinates, or along random directions where `turned`."""
    f, g, r = len(noise_x), len(noise_y), len(signal)
    frames = [orthonormal(one) for one in normals(key, (f, r), (g, r), *(((f, f), (g, g)) if turned else ()))]
    axes = frames[2:] or [jnp.eye(f), jnp.eye(g)]
    return Spiked(frames[0], frames[1], signal, axes[0] * noise_x[None], axes[1] * noise_y[None])


def rows(key: Key[Array, ""], model: Spiked, n: int, share: Number = 1.0) -> Rows:
    """n rows of both sides. share: p."""
    coins, key = jax.random.split(key)
    (f, r), g = model.u.shape, len(model.v)
    z, other, xi, xi_y = normals(key, (n, r), (n, r), (n, f), (n, g))
    clean = jax.random.uniform(coins, (n,)) < share
    partner = jnp.where(clean[:, None], z, other)
    signal = model.signal[None]
    return Rows((z * signal) @ model.u.T + xi @ model.noise_x.T, (partner * signal) @ model.v.T + xi_y @ model.noise_y.T, clean)


def mixing(model: Spiked, *, clean: bool) -> Float[Array, "D q"]:
    """B with (x, y) = B g of a standard normal g, for true pairs or for wrong ones; q = 2 r + D."""
    (f, r), g = model.u.shape, len(model.v)
    u, v, empty = model.u * model.signal[None], model.v * model.signal[None], jnp.zeros
    of_x = jnp.concatenate([u, empty((f, r)), model.noise_x, empty((f, g))], axis=1)
    of_y = jnp.concatenate([*((v, empty((g, r))) if clean else (empty((g, r)), v)), empty((g, f)), model.noise_y], axis=1)
    return jnp.concatenate([of_x, of_y])


def bartlett(normal: Float[Array, "q q"], chi: Float[Array, " q"], n: Number) -> Float[Array, "q q"]:
    """L with L L^T distributed as the scatter of n standard normal rows of q features: the L of their LQ decomposition (Bartlett 1933).

    chi: of n, n - 1, ... degrees of freedom, the diagonal. Below it are normals; columns from n on are zero.
    """
    return jnp.where(jnp.arange(len(chi))[None] < n, jnp.tril(normal, -1) + jnp.diag(chi), 0)


def covariance(key: Key[Array, ""], model: Spiked, counts: Num[Array, "2"]) -> Float[Array, "D D"]:
    """The centred sample covariance (divided by n - 1) of (x, y), drawn from its own distribution: no row is made.

    counts: of true pairs and of wrong ones, two groups of Gaussian rows; 2 and more in all, none in one of them is fine.
    Within a group the centred scatter is a Wishart matrix with one degree of freedom less than rows, independent of the group's
    mean; the two means add an outer product. It is distributed as the covariance of `rows` of these counts. O(D^3), whatever n.
    """
    mixes = jnp.stack([mixing(model, clean=True), mixing(model, clean=False)])
    q = mixes.shape[2]
    key, chis = jax.random.split(key)
    normal, means = normals(key, (2, q, q), (2, q))
    counts = counts.astype(model.u.dtype)
    free = jnp.maximum(counts - 1, 0)
    chi = jnp.sqrt(jax.random.chisquare(chis, jnp.maximum(free[:, None] - jnp.arange(q)[None], 1)))
    roots = mixes @ jax.vmap(bartlett)(normal, chi, free)
    n = counts.sum()
    between = jnp.sqrt(counts[::-1] / n) * jnp.asarray([1, -1]) @ jnp.einsum("gdq,gq->gd", mixes, means)
    scatter = jnp.einsum("gdq,geq->de", roots, roots) + jnp.where(counts.min() > 0, jnp.outer(between, between), 0)
    return scatter / (n - 1)
