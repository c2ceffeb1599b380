"""One learner, three samplers: each round draws a negative for each anchor and fits the rule to all that was drawn so far."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bacl_jax.config_objective import BNSConfig
from bacl_jax.objective import bns
from bacl_jax.schedules import curriculum
from bacl_jax.theory.bacl_angle import Law, comparisons, fit

ROUNDS = 8
Sampler = Callable[..., Array]  # (key, boundary [A, M], progress u) -> column [A]


def uniform(key: Array, boundary: Float[Array, "A M"], u: Float[Array, ""]) -> Int[Array, " A"]:
    """Any negative of the anchor's."""
    return jax.random.randint(key, boundary.shape[:1], 0, boundary.shape[1])


def hardest(key: Array, boundary: Float[Array, "A M"], u: Float[Array, ""]) -> Int[Array, " A"]:
    """The negative with the largest boundary score, from the first round on."""
    return boundary.argmax(1)


def boundary_aware(key: Array, boundary: Float[Array, "A M"], u: Float[Array, ""], *, config: BNSConfig) -> Int[Array, " A"]:
    """The project's draw with a policy score of 0: the k hardest and pool - k uniform candidates, weighted by the curriculum."""
    pick, noise = jax.random.split(key)
    k = min(config.k, boundary.shape[1])
    _, top = jax.lax.top_k(boundary, k)
    column = jnp.concatenate([top, jax.random.randint(pick, (len(boundary), config.pool - k), 0, boundary.shape[1])], 1)
    score = jnp.take_along_axis(boundary, column, 1)
    candidates = bns.Candidates(column=column, s=score, boundary=score, valid=jnp.ones(column.shape, bool))
    nothing = jnp.zeros((len(boundary), 1))
    keys = bns.row_keys(noise, jnp.arange(len(boundary)))
    drawn = bns.draw(candidates, nothing, nothing, lambda *_: jnp.zeros_like(score), keys, alpha=curriculum(u, config), config=config)
    return bns.hardest(drawn)[0]


SAMPLERS: dict[str, Sampler] = {"uniform": uniform, "hardest": hardest, "bns": partial(boundary_aware, config=BNSConfig())}


def learn(key: Array, x: Float[Array, "A M"], sampler: Sampler) -> Float[Array, ""]:
    """The angle learned from anchors with M negatives each in ROUNDS rounds; the first rule is a random one within pi/2 of the best."""
    first, draws = jax.random.split(key)

    def a_round(carry: tuple[Array, Array, Array], step: tuple[Array, Array]) -> tuple[tuple[Array, Array, Array], None]:
        theta, drawn, weight = carry
        r, noise = step
        column = sampler(noise, -jnp.sin(x - theta), r / (ROUNDS - 1))
        drawn = drawn.at[r].set(jnp.take_along_axis(x, column[:, None], 1)[:, 0])
        weight = weight.at[r].set(1.0)
        return (fit(drawn.ravel(), weight.ravel()), drawn, weight), None

    theta = jax.random.uniform(first, (), x.dtype, -jnp.pi / 2, jnp.pi / 2)
    empty = jnp.zeros((ROUNDS, len(x)), x.dtype)
    steps = (jnp.arange(ROUNDS), jax.random.split(draws, ROUNDS))
    return jax.lax.scan(a_round, (theta, empty, empty), steps)[0][0]


@partial(jax.jit, static_argnames=("anchors", "negatives", "sampler", "seeds"))
def angles(law: Law, *, anchors: int, negatives: int, sampler: str, seeds: int) -> Float[Array, " {seeds}"]:
    """Learned angles of independent data sets. All samplers see the same data sets. Memory: 8 sets of anchors x negatives at a time."""

    def one(seed: Array) -> Array:
        data, draws = jax.random.split(jax.random.fold_in(jax.random.key(anchors), seed))
        return learn(draws, comparisons(data, law, anchors, negatives), SAMPLERS[sampler])

    return jax.lax.map(one, jnp.arange(seeds), batch_size=8)
