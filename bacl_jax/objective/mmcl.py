"""The general nonlinear contrastive loss of MMCL (arXiv 2302.06232, eq. 2.1) and the weights of its contrastive cross-covariance.

    L = 1/(2n) sum_i [ phi(A_i) + phi(B_i) ],   A_i = eps psi(0) + sum_{j != i} psi(s_ij - nu s_ii),   B_i likewise with s_ji

A gradient step of L in linear encoders, s_ij = <G1 x_i, G2 y_j>, is a power step towards the leading singular vectors of

    S(beta) = 1/n sum_i beta_i x_i y_i^T - 1/n sum_{i != j} beta_ij x_i y_j^T,   dL/dG1 = -G2 S^T,   dL/dG2 = -G1 S
    a_ij = phi'(A_i) psi'(s_ij - nu s_ii),  b_ij the text-side twin
    beta_ij = (a_ij + b_ji) / 2,  beta_i = nu sum_{j != i} (a_ij + b_ij) / 2

Dimension legend: n pairs, F and G features of the two sides.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bacl_jax.objective.similarity import MASKED

Scalar = Callable[[Array], Array]  # of a number; used on every entry of an array


@dataclasses.dataclass(frozen=True)
class Form:
    """(phi, psi, eps, nu) of eq. 2.1. phi and psi are any JAX functions of a number: their derivatives are taken for you.

    log_space:  psi gives log psi(u), which is not negative infinity, and phi takes log A: for a psi that grows like an exponential.
    mean:       A_i has the mean over j != i in place of the sum, so that the loss is the same size for any n.
    attraction: chi(s_ii), added to each phi(A_i) and phi(B_i); beta_i then has -chi'(s_ii) added. Not in the paper: for the sigmoid loss.
    """

    phi: Scalar
    psi: Scalar
    eps: float
    nu: float
    log_space: bool = False
    mean: bool = False
    attraction: Scalar | None = None


def infonce(tau: float = 1.0) -> Form:
    """CLIP: phi = tau log, psi = exp(. / tau), eps = nu = 1; with one positive a row the InfoNCE of infonce.py, tau times."""
    return Form(phi=lambda log_a: tau * log_a, psi=lambda u: u / tau, eps=1, nu=1, log_space=True)


def linear() -> Form:
    """phi = psi = identity: S is the centred cross-covariance, and the minimum is its SVD."""
    return Form(phi=lambda a: a, psi=lambda u: u, eps=0, nu=1, mean=True)


def softplus(tau: float = 1.0) -> Form:
    """The logistic loss of every comparison of the pair with a negative: psi = tau log(1 + exp(. / tau))."""
    return Form(phi=lambda a: a, psi=lambda u: tau * jax.nn.softplus(u / tau), eps=0, nu=1, mean=True)


def hinge(margin: float = 1.0, tau: float = 0.1) -> Form:
    """The triplet loss max(0, margin + u), its corner smoothed over about tau."""
    return Form(phi=lambda a: a, psi=lambda u: tau * jax.nn.softplus((u + margin) / tau), eps=0, nu=1, mean=True)


def sigmoid(bias: float = 0.0) -> Form:
    """SigLIP's loss (arXiv 2303.15343): psi = softplus(. + bias), nu = 0, and an attraction of its own, softplus(-s_ii - bias)."""
    return Form(phi=lambda a: a, psi=lambda u: jax.nn.softplus(u + bias), eps=0, nu=0, attraction=lambda s: jax.nn.softplus(-s - bias))


def gce(q: float = 0.5, tau: float = 1.0) -> Form:
    """Robust: phi(A) = tau (1 - A^-q) / q, psi = exp(. / tau): cross-entropy generalised (arXiv 1805.07836), p = 1 / A.

    Its weights are InfoNCE's times p^q: a pair that the model holds for unlikely pulls little. q -> 0 is InfoNCE, q = 1 the mean
    absolute error 1 - p, which learns slowly.
    """
    return Form(phi=lambda log_a: -tau * jnp.expm1(-q * log_a) / q, psi=lambda u: u / tau, eps=1, nu=1, log_space=True)


def ramp(tau: float = 1.0) -> Form:
    """Robust: psi = sigmoid(. / tau), a smoothed count of the negatives that beat the pair: beyond reach, they no longer pull."""
    return Form(phi=lambda a: a, psi=lambda u: jax.nn.sigmoid(u / tau), eps=0, nu=1, mean=True)


FORMS: dict[str, Callable[..., Form]] = {
    "infonce": infonce,
    "linear": linear,
    "softplus": softplus,
    "hinge": hinge,
    "sigmoid": sigmoid,
    "gce": gce,
    "ramp": ramp,
}


def each(function: Scalar, x: Array) -> Array:
    """function of every entry."""
    for _ in range(x.ndim):
        function = jax.vmap(function)
    return function(x)


def slope(function: Scalar, x: Array) -> Array:
    """Its derivative at every entry."""
    return each(jax.grad(function), x)


def _one_side(s: Float[Array, "n n"], form: Form, counts: Bool[Array, "n n"] | None) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """(phi(A_i), a_ij, 0 on the diagonal and where j does not count) of the rows."""
    n = s.shape[0]
    off = ~jnp.eye(n, dtype=bool) if counts is None else counts & ~jnp.eye(n, dtype=bool)
    u = jnp.where(off, s - form.nu * jnp.diagonal(s)[:, None], 0)
    psi, share = each(form.psi, u), n - 1 if form.mean else 1
    zero = form.psi(jnp.zeros((), s.dtype))
    if form.log_space:
        first = jnp.where(form.eps > 0, zero + jnp.log(jnp.where(form.eps > 0, form.eps, 1)), MASKED)
        terms = jnp.where(off, psi - jnp.log(jnp.asarray(share, s.dtype)), MASKED)
        total = jnp.logaddexp(first, jax.nn.logsumexp(terms, axis=1))
        total = jnp.where(total > MASKED / 2, total, 0)  # a row without any entry: phi(0), a constant
        weight = jnp.where(off, jnp.exp(terms - total[:, None]) * slope(form.psi, u), 0)
    else:
        total = form.eps * zero + jnp.where(off, psi, 0).sum(1) / share
        weight = jnp.where(off, slope(form.psi, u), 0) / share
    return each(form.phi, total), slope(form.phi, total)[:, None] * weight


def loss(s: Float[Array, "n n"], form: Form, counts: Bool[Array, "n n"] | None = None) -> Float[Array, ""]:
    """Eq. 2.1 of the similarities of n pairs, without the regulariser. O(n^2) memory; in the trainer, contrast.py computes it in tiles.

    counts: which j are negatives of i; None: all others. A mean is over n - 1 whatever counts, as in the trainer.
    """
    value = _one_side(s, form, counts)[0] + _one_side(s.T, form, None if counts is None else counts.T)[0]
    if form.attraction is not None:
        value += 2 * each(form.attraction, jnp.diagonal(s))
    return value.mean() / 2


def beta_weights(s: Float[Array, "n n"], form: Form, counts: Bool[Array, "n n"] | None = None) -> Float[Array, "n n"]:
    """beta: beta_i on the diagonal, -beta_ij elsewhere; dL/ds = -beta / n, whatever made s, with the `counts` of `loss`. O(n^2) memory.

    So S(beta) = x^T beta y / n (`cross_covariance`).
    """
    a, b = _one_side(s, form, counts)[1], _one_side(s.T, form, None if counts is None else counts.T)[1]
    pull = form.nu * (a + b).sum(1) / 2
    if form.attraction is not None:
        pull -= slope(form.attraction, jnp.diagonal(s))
    return jnp.diag(pull) - (a + b.T) / 2


def cross_covariance(x: Float[Array, "n F"], y: Float[Array, "n G"], beta: Float[Array, "n n"]) -> Float[Array, "F G"]:
    """The contrastive cross-covariance S(beta). With the weights of `linear` it is the centred cross-covariance, n / (n - 1) times."""
    return x.T @ beta @ y / x.shape[0]
