"""BNS: candidates, the sign of the schedule with and without a trained policy, the draw, its invariance to sharding."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bacl_jax.config import BNSConfig
from bacl_jax.models.policy import Policy
from bacl_jax.objective import bns
from bacl_jax.schedules import curriculum

A, N, D = 24, 200, 16


def problem(seed=0):
    r = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    z, w = unit(r.normal(size=(A, D))), unit(r.normal(size=(N, D)))
    w[:A] = unit(z + 0.4 * r.normal(size=(A, D)))
    s = jnp.asarray(z @ w.T, jnp.float32)
    allowed = jnp.asarray(~np.eye(A, N, dtype=bool))
    return jnp.asarray(z, jnp.float32), jnp.asarray(w, jnp.float32), s, jnp.diagonal(s), allowed


def keys(seed=0):
    return bns.row_keys(jax.random.key(seed), jnp.arange(A))


def no_policy(anchor, columns, picked, s, boundary):
    return jnp.zeros_like(s)


def test_top_candidates_are_the_k_most_similar_allowed_columns():
    _, _, s, own, allowed = problem()
    c = bns.choose_candidates(s, own, allowed, keys(), k=5, pool=5)
    expected = np.argsort(-np.where(allowed, s, -9), axis=1)[:, :5]
    assert c.column.tolist() == expected.tolist()
    chex.assert_trees_all_close(c.boundary, jnp.take_along_axis(s, c.column, 1) - own[:, None])


def test_pool_is_distinct_allowed_and_covers_the_strata():
    _, _, s, own, allowed = problem()
    allowed = allowed.at[:, 150:].set(False)
    c = bns.choose_candidates(s, own, allowed, keys(), k=8, pool=48)
    assert c.column.shape == (A, 48)
    assert bool(jnp.take_along_axis(allowed, c.column, 1)[c.valid].all())
    for row in range(A):
        chosen = np.asarray(c.column[row])[np.asarray(c.valid[row])]
        assert len(set(chosen)) == len(chosen)
    strata = np.asarray(c.column[:, 8:]) // (N // 40)
    assert (strata == np.arange(40)).all()


def test_no_allowed_column_gives_no_valid_candidate_and_finite_losses():
    z, w, s, own, _ = problem()
    c = bns.choose_candidates(s, own, jnp.zeros((A, N), bool), keys(), k=4, pool=8)
    drawn = bns.draw(c, z, w, no_policy, keys(1), alpha=jnp.float32(-0.5), config=BNSConfig())
    assert not c.valid.any()
    assert not bns.hardest(drawn)[1].any()
    assert float(jnp.abs(drawn.q).sum()) == 0
    assert np.isfinite(float(bns.policy_loss(drawn, alpha=jnp.float32(-0.5), config=BNSConfig())))


def frozen_draw(policy, key, alpha, config):
    z, w, s, own, allowed = problem()
    pick, noise = (bns.row_keys(jax.random.fold_in(key, i), jnp.arange(A)) for i in range(2))
    c = bns.choose_candidates(s, own, allowed, pick, k=config.k, pool=config.pool)
    return bns.draw(c, z, w, policy, noise, alpha=alpha, config=config)


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def trained_draw(alpha, config, steps):
    """Diagnostics of a draw on frozen scores, after `steps` of the policy's own loss at one place of the curriculum."""
    graph, state = nnx.split(Policy(D, 32, config.policy_bound, rngs=nnx.Rngs(0)))
    optimizer = optax.adam(1e-2)

    def step(carry, key):
        def loss(params):
            return bns.policy_loss(frozen_draw(nnx.merge(graph, params), key, alpha, config), alpha=alpha, config=config)

        params, opt = carry
        updates, opt = optimizer.update(jax.grad(loss)(params), opt)
        return (optax.apply_updates(params, updates), opt), None

    params = nnx.to_pure_dict(state)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(3), steps))
    return bns.diagnostics(frozen_draw(nnx.merge(graph, params), jax.random.key(9), alpha, config), config)


@pytest.mark.parametrize("steps", [0, 500])
def test_curriculum_goes_from_easy_to_hard_and_the_policy_cannot_overrule_it(steps):
    config = BNSConfig(k=16, pool=64)
    found = [trained_draw(curriculum(u, config), config, steps) for u in (0.0, 0.1, 0.15, 0.2, 1.0)]
    drawn = [float(f["bs_drawn"]) for f in found]
    assert drawn[0] < float(found[0]["bs_uniform"])
    assert drawn[-1] > float(found[-1]["bs_uniform"])
    assert drawn == sorted(drawn)


def test_an_unbounded_policy_removes_the_easy_phase():
    config = BNSConfig(k=16, pool=64, policy_bound=None, tau_b=1.0)
    found = trained_draw(curriculum(0.0, config), config, 500)
    assert float(found["bs_drawn"]) > float(found["bs_uniform"])


def test_weights_sum_to_one_and_scatter_to_k():
    z, w, s, own, allowed = problem()
    config = BNSConfig(k=8, pool=32)
    c = bns.choose_candidates(s, own, allowed, keys(), k=8, pool=32)
    drawn = bns.draw(c, z, w, no_policy, keys(1), alpha=jnp.float32(-0.5), config=config)
    chex.assert_trees_all_close(drawn.q.sum(1), jnp.ones(A), rtol=1e-5)
    weight = bns.weight_matrix(drawn, N, config.k)
    chex.assert_trees_all_close(weight.sum(1), jnp.full(A, 8.0), rtol=1e-5)
    assert float(jnp.where(allowed, 0, weight).sum()) == 0


def test_noise_belongs_to_the_global_row():
    z, w, s, own, allowed = problem()
    half = slice(A // 2, A)
    whole = bns.row_keys(jax.random.key(0), jnp.arange(A))
    part = bns.row_keys(jax.random.key(0), jnp.arange(A)[half])
    config = BNSConfig(k=8, pool=32)

    def sample(rows, keys):
        c = bns.choose_candidates(s[rows], own[rows], allowed[rows], keys, k=8, pool=32)
        return bns.draw(c, z[rows], w, no_policy, keys, alpha=jnp.float32(0.3), config=config)

    chex.assert_trees_all_equal(sample(slice(None), whole).q[half], sample(half, part).q)


def test_gradient_reaches_the_policy_alone():
    z, w, s, own, allowed = problem()
    config = BNSConfig(k=8, pool=16)

    def loss(z, w, s, gain):
        c = bns.choose_candidates(s, own, allowed, keys(), k=8, pool=16)
        drawn = bns.draw(c, z, w, lambda a, b, picked, s, boundary: gain * s, keys(1), alpha=jnp.float32(0.0), config=config)
        return bns.policy_loss(drawn, alpha=jnp.float32(0.0), config=config)

    dz, dw, ds, dgain = jax.grad(loss, (0, 1, 2, 3))(z, w, s, jnp.float32(1.0))
    assert float(jnp.abs(dz).max()) == float(jnp.abs(dw).max()) == float(jnp.abs(ds).max()) == 0
    assert float(dgain) < 0  # preferring similar candidates raises the reward


def test_schedule_values_of_the_paper():
    config = BNSConfig(midpoint=0.5)
    assert float(curriculum(0.0, config)) == pytest.approx(0.3, abs=1e-3)
    assert float(curriculum(0.5, config)) == pytest.approx(-0.1, abs=1e-6)
    assert float(curriculum(1.0, config)) == pytest.approx(-0.5, abs=1e-3)
