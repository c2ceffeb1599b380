"""A matching problem with one unknown angle, in which rho, eps, the label noise and the excess risk are known exactly.

A comparison of an anchor's own caption with a negative is a unit vector at angle x, labelled "own caption wins". The rule of
angle theta agrees with it where sin(x - theta) > 0, and -sin(x - theta) is its boundary score BS (arXiv 2511.08399). The best
rule is theta = 0. The setting is ours.
Dimensions: A anchors, M negatives of each, N comparisons.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bacl_jax.types import pytree


@pytree
class Law:
    """Where negatives lie: d in [0, pi/2] is the angle between a comparison and the best rule's boundary.

    rho: share of ambiguous ones, d <= eps. order: their density is proportional to d^order, so 0 is flat up to the boundary, and
    above 0 they thin out towards it. The others are uniform on [eps, pi/2]. mispaired: share of anchors whose own caption is
    not theirs; own and negative are exchangeable then, so a label is wrong with probability mispaired / 2 wherever it lies.
    That is Massart's noise condition with margin h = 1 - mispaired, and the Bayes risk is mispaired / 2.
    """

    rho: Float[Array, ""] | float = 0.2
    eps: Float[Array, ""] | float = 0.1
    order: Float[Array, ""] | float = 1.0
    mispaired: Float[Array, ""] | float = 0.1


def comparisons(key: Array, law: Law, anchors: int, negatives: int) -> Float[Array, "{anchors} {negatives}"]:
    """Angles x in (-pi, pi) of independent comparisons. Of a well paired anchor all lie in (0, pi), of a mispaired one on either side."""
    kind, place, end, pair, swap = jax.random.split(key, 5)
    shape = (anchors, negatives)
    share = jax.random.uniform(place, shape)
    ambiguous = jax.random.uniform(kind, shape) < law.rho
    d = jnp.where(ambiguous, law.eps * share ** (1 / (1 + law.order)), law.eps + (jnp.pi / 2 - law.eps) * share)
    x = jnp.where(jax.random.bernoulli(end, 0.5, shape), d, jnp.pi - d)
    mispaired = jax.random.uniform(pair, (anchors, 1)) < law.mispaired
    return jnp.where(mispaired & jax.random.bernoulli(swap, 0.5, shape), -x, x)


def nearer_than(law: Law, d: Float[Array, "..."]) -> Float[Array, "..."]:
    """Share of the negatives within angle d of the boundary."""
    ambiguous = jnp.clip(d / law.eps, 0, 1) ** (1 + law.order)
    other = jnp.clip((d - law.eps) / (jnp.pi / 2 - law.eps), 0, 1)
    return law.rho * ambiguous + (1 - law.rho) * other


def excess_risk(law: Law, theta: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact error rate of rule theta on fresh comparisons under the law, less the Bayes risk; theta in [-pi, pi].

    The rule is wrong on x in (0, |theta|) or its mirror image, and each error costs 1 - mispaired on average.
    """
    d = jnp.abs(theta)
    wrong = jnp.where(d <= jnp.pi / 2, nearer_than(law, d), 2 - nearer_than(law, jnp.pi - d)) / 2
    return (1 - law.mispaired) * wrong


def wrap(angle: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same direction as an angle in [-pi, pi)."""
    return jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi


def fit(x: Float[Array, " N"], weight: Float[Array, " N"]) -> Float[Array, ""]:
    """Empirical risk minimiser of the 0-1 loss: the middle of the widest interval of angles that the most comparisons agree with.

    A comparison agrees with the arc (x - pi, x); one sort of the 2 N ends finds where the most arcs overlap. weight: 1 where a
    comparison counts, else 0. O(N log N).
    """
    edge, step = jax.lax.sort((wrap(jnp.concatenate([x - jnp.pi, x])), jnp.concatenate([weight, -weight])), num_keys=1)
    count = jnp.cumsum(step)
    width = jnp.diff(edge, append=edge[:1] + 2 * jnp.pi)
    chosen = jnp.where(count >= count.max() - 0.5, width, -1).argmax()
    return wrap(edge[chosen] + width[chosen] / 2)
