"""A matching problem whose Bayes rule, noise and share of ambiguous negatives are known, and a learner that draws its negatives.

The setting is ours; the statements that bacl.py tests on it are those of arXiv 2511.08399, section 4. A candidate is the
difference x = (t, v) of its features and the true match's. Its true boundary score is t: with probability rho it is
ambiguous, t ~ U[-eps, eps], else t is uniform on eps < |t| < 1; v ~ N(0, I) carries nothing. Which of the two matches is
sign(t); the annotation y of an ambiguous candidate is wrong with probability (1 - h)/2, that of an easy one never. So
Massart's condition holds with margin h, and the density of t at the boundary is rho / (2 eps).
Dimensions: A anchors of a round, K candidates of an anchor, D = 1 + len(v).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from bacl_jax.config import BNSConfig
from bacl_jax.objective.bns import adjusted_score
from bacl_jax.schedules import curriculum

MIDPOINT = 0.15


@dataclasses.dataclass(frozen=True)
class Problem:
    """h: Massart margin of ambiguous labels; anchors: of a round; pool: candidates of an anchor."""

    eps: float = 0.2
    h: float = 0.6
    dim: int = 4
    anchors: int = 16
    pool: int = 64


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the one negative of an anchor is drawn: Gumbel top-1 of the adjusted scores a = -alpha BS / tau_b, policy score 0.

    curriculum: alpha follows the schedule, else it is 0, which is a uniform draw. hardest: the largest BS, always.
    signed: BS as the annotation has it, > 0 where the model prefers the negative; else -|BS|, the nearness to the boundary,
    which no annotation enters. The temperature of round e = 1, 2, ... is tau_b e^-decay.
    """

    curriculum: bool = False
    hardest: bool = False
    signed: bool = False
    tau_b: float = 0.5
    decay: float = 0.0


def candidates(key: Array, problem: Problem, rho: Float[Array, ""]) -> tuple[Float[Array, "A K D"], Float[Array, "A K"]]:
    """Differences x, and annotations y = +-1: +1 where the candidate is said to match better."""
    kind, size, side, flip, rest = jax.random.split(key, 5)
    shape = (problem.anchors, problem.pool)
    ambiguous = jax.random.uniform(kind, shape) < rho
    uniform = jax.random.uniform(size, shape)
    distance = jnp.where(ambiguous, problem.eps * uniform, problem.eps + (1 - problem.eps) * uniform)
    truth = jax.random.rademacher(side, shape, jnp.float32)
    wrong = ambiguous & (jax.random.uniform(flip, shape) < (1 - problem.h) / 2)
    v = jax.random.normal(rest, (*shape, problem.dim - 1))
    return jnp.concatenate([(truth * distance)[..., None], v], -1), jnp.where(wrong, -truth, truth)


def excess_risk(w: Float[Array, " D"], problem: Problem, rho: Float[Array, ""]) -> Float[Array, ""]:
    """P(error of sign<w, x>) - P(error of Bayes) on a candidate drawn uniformly: exact, no sample. w need not be of norm 1.

    = E |2 P(y = 1 | x) - 1| 1[sign<w, x> != sign t]; given t the disagreement is Phi(-|t| / u), u = |w_v| / w_t, and its
    integral over t is closed.
    """
    u = jnp.maximum(tangent(w), 1e-12)

    def integral(t: Array | float) -> Array:
        z = t / u
        return u * (z * norm.cdf(-z) + norm.pdf(0.0) - norm.pdf(z))

    near = integral(problem.eps) / problem.eps
    far = (integral(1.0) - integral(problem.eps)) / (1 - problem.eps)
    near, far = (jnp.where(w[0] > 0, p, 1 - p) for p in (near, far))
    return problem.h * rho * near + (1 - rho) * far


def tangent(w: Float[Array, " D"]) -> Float[Array, ""]:
    """Tangent of the angle between learnt and true boundary: the |t| below which a typical candidate (|v| = 1) may be mistaken."""
    return jnp.linalg.norm(w[1:]) / jnp.maximum(jnp.abs(w[0]), 1e-12)


def draw(key: Array, w: Float[Array, " D"], x: Array, y: Array, sampler: Sampler, *, progress: Array, tau_b: Array) -> Array:
    """Number of the candidate that each anchor draws under the model w (of norm 1)."""
    similarity = x @ w
    against = -y * similarity
    if sampler.hardest:
        return against.argmax(1)
    boundary = against if sampler.signed else -jnp.abs(similarity)
    alpha = curriculum(progress, BNSConfig(midpoint=MIDPOINT)) if sampler.curriculum else jnp.zeros(())
    # tau_b changes from round to round here, so it is put into the score that adjusted_score divides by 1.
    a = adjusted_score(jnp.zeros_like(boundary), boundary / tau_b, jnp.ones(boundary.shape, bool), alpha, 1.0)
    return (a + jax.random.gumbel(key, a.shape)).argmax(1)


@functools.partial(jax.jit, static_argnames=("problem", "sampler", "rounds"))
@functools.partial(jax.vmap, in_axes=(0, None, None, None, None))
def train(key: Array, problem: Problem, sampler: Sampler, rounds: int, rho: Float[Array, ""]) -> Float[Array, "rounds D"]:
    """Models after each of `rounds` rounds, of `anchors` new anchors each, from a start at 45 degrees; mapped over keys.

    A round is a gradient step on the linear contrastive loss -y <w, x> of the drawn pairs, and w is scaled back to norm 1.
    The step is 4 m / e in round e, m the mean |BS| of the drawn pairs: Robbins and Monro's, in units of the draw itself, so
    that one rule serves all samplers. Only the drawn pairs' annotations teach: n = anchors * rounds.
    """
    direction = jnp.ones(problem.dim).at[0].set(jnp.sqrt(problem.dim - 1.0))

    def one(w: Array, e: Array) -> tuple[Array, Array]:
        fresh, noise = jax.random.split(jax.random.fold_in(key, e))
        x, y = candidates(fresh, problem, rho)
        tau_b = sampler.tau_b * e ** -jnp.float32(sampler.decay)
        pick = draw(noise, w, x, y, sampler, progress=(e - 1) / max(rounds - 1, 1), tau_b=tau_b)
        x, y = x[jnp.arange(problem.anchors), pick], jnp.take_along_axis(y, pick[:, None], 1)[:, 0]
        w = w + 4 * jnp.abs(x @ w).mean() / e * (y[:, None] * x).mean(0)
        w /= jnp.linalg.norm(w)
        return w, w

    return jax.lax.scan(one, direction / jnp.linalg.norm(direction), jnp.arange(1, rounds + 1))[1]
