"""BNS: candidates, the sign of the schedule with and without a trained policy, the draw, its invariance to sharding."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bacl_jax.config_objective import BNSConfig
from bacl_jax.models.policy import Policy
from bacl_jax.objective import bns
from bacl_jax.objective.similarity import Rows, cosine
from bacl_jax.objective.tile import scatter
from bacl_jax.schedules import curriculum

A, N, D = 24, 200, 16


def problem(seed=0):
    r = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    z, w = unit(r.normal(size=(A, D))), unit(r.normal(size=(N, D)))
    w[:A] = unit(z + 0.4 * r.normal(size=(A, D)))
    z, w = jnp.asarray(z, jnp.float32), jnp.asarray(w, jnp.float32)
    s = cosine(z, w)
    return rows(z), rows(w), s, jnp.diagonal(s), jnp.asarray(~np.eye(A, N, dtype=bool))


def rows(x):
    """Row i is the pair of row i of the other side and of no other."""
    ids = jnp.stack([jnp.arange(x.shape[0])] * 2, 1).astype(jnp.uint32)
    return Rows(x=x, caption_id=ids, anchor_id=ids, valid=jnp.ones(x.shape[0], bool))


def choose(query, columns, own, keys, **config):
    return bns.choose_candidates(query, columns, own, keys, config=BNSConfig(**config))


def keys(seed=0):
    return bns.row_keys(jax.random.key(seed), jnp.arange(A))


def no_policy(anchor, columns, pick, s, boundary):
    return jnp.zeros_like(s)


def test_top_candidates_are_the_k_most_similar_allowed_columns():
    z, w, s, own, allowed = problem()
    c = choose(z, w, own, keys(), k=5, pool=5)
    expected = np.argsort(-np.where(allowed, s, -9), axis=1)[:, :5]
    assert c.column.tolist() == expected.tolist()
    chex.assert_trees_all_close(c.boundary, jnp.take_along_axis(s, c.column, 1) - own[:, None])


def test_pool_is_distinct_allowed_and_covers_the_strata():
    z, w, _, own, allowed = problem()
    allowed = allowed.at[:, 150:].set(False)
    c = choose(z, dataclasses.replace(w, valid=w.valid.at[150:].set(False)), own, keys(), k=8, pool=48)
    assert c.column.shape == (A, 48)
    assert bool(jnp.take_along_axis(allowed, c.column, 1)[c.valid].all())
    for row in range(A):
        chosen = np.asarray(c.column[row])[np.asarray(c.valid[row])]
        assert len(set(chosen)) == len(chosen)
    strata = np.asarray(c.column[:, 8:]) // (N // 40)
    assert (strata == np.arange(40)).all()


def test_no_allowed_column_gives_no_valid_candidate_and_finite_losses():
    z, w, _, own, _ = problem()
    c = choose(z, dataclasses.replace(w, valid=jnp.zeros(N, bool)), own, keys(), k=4, pool=8)
    drawn = bns.draw(c, z.x, w.x, no_policy, keys(1), alpha=jnp.float32(-0.5), config=BNSConfig())
    assert not c.valid.any()
    assert not bns.hardest(drawn)[1].any()
    assert float(jnp.abs(drawn.q).sum()) == 0
    assert np.isfinite(float(bns.policy_loss(drawn, alpha=jnp.float32(-0.5), config=BNSConfig())))


def frozen_draw(policy, key, alpha, config):
    z, w, _, own, _ = problem()
    pick, noise = (bns.row_keys(jax.random.fold_in(key, i), jnp.arange(A)) for i in range(2))
    c = bns.choose_candidates(z, w, own, pick, config=config)
    return bns.draw(c, z.x, w.x, policy, noise, alpha=alpha, config=config)


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


def test_weights_sum_to_one_on_allowed_columns():
    allowed = problem()[-1]
    drawn = frozen_draw(no_policy, jax.random.key(0), jnp.float32(-0.5), BNSConfig(k=8, pool=32))
    chex.assert_trees_all_close(drawn.q.sum(1), jnp.ones(A), rtol=1e-5)
    weight = scatter(drawn.candidates.column, drawn.q, 0, N)
    chex.assert_trees_all_close(weight.sum(1), jnp.ones(A), rtol=1e-5)
    assert float(jnp.where(allowed, 0, weight).sum()) == 0


def test_noise_belongs_to_the_global_row():
    z, w, _, own, _ = problem()
    half = slice(A // 2, A)
    whole = bns.row_keys(jax.random.key(0), jnp.arange(A))
    part = bns.row_keys(jax.random.key(0), jnp.arange(A)[half])
    config = BNSConfig(k=8, pool=32)

    def sample(rows, keys):
        query = jax.tree.map(lambda x: x[rows], z)
        c = bns.choose_candidates(query, w, own[rows], keys, config=config)
        return bns.draw(c, query.x, w.x, no_policy, keys, alpha=jnp.float32(0.3), config=config)

    chex.assert_trees_all_equal(sample(slice(None), whole).q[half], sample(half, part).q)


def test_gradient_reaches_the_policy_alone():
    z, w, _, own, _ = problem()
    config = BNSConfig(k=8, pool=16)

    def loss(z, w, own, gain):
        gained = lambda anchor, columns, pick, s, boundary: gain * s  # noqa: E731
        drawn = bns.sample(rows(z), rows(w), own, gained, keys(), alpha=jnp.float32(0.0), config=config)
        return bns.policy_loss(drawn, alpha=jnp.float32(0.0), config=config)

    dz, dw, down, dgain = jax.grad(loss, (0, 1, 2, 3))(z.x, w.x, own, jnp.float32(1.0))
    assert float(jnp.abs(dz).max()) == float(jnp.abs(dw).max()) == float(jnp.abs(down).max()) == 0
    assert float(dgain) < 0  # preferring similar candidates raises the reward


def test_schedule_values_of_the_paper():
    config = BNSConfig(midpoint=0.5)
    assert float(curriculum(0.0, config)) == pytest.approx(0.3, abs=1e-3)
    assert float(curriculum(0.5, config)) == pytest.approx(-0.1, abs=1e-6)
    assert float(curriculum(1.0, config)) == pytest.approx(-0.5, abs=1e-3)


def candidates(s, valid=None):
    s = jnp.asarray(s, jnp.float32)
    column = jnp.tile(jnp.arange(s.shape[1]), (s.shape[0], 1))
    return bns.Candidates(column=column, s=s, boundary=s, valid=jnp.ones(s.shape, bool) if valid is None else valid)


def drawn(c, policy=no_policy, seed=0, alpha=-0.05, **config):
    a, n = c.s.shape
    keys = bns.row_keys(jax.random.key(seed), jnp.arange(a))
    zeros = jnp.zeros((a, 2)), jnp.zeros((n, 2))
    return bns.draw(c, *zeros, policy, keys, alpha=jnp.float32(alpha), config=BNSConfig(**config))


def test_candidates_are_drawn_as_often_as_their_scores_say():
    """The argmax of the perturbed scores has probability softmax(a) (Gumbel-max)."""
    scores = jnp.tile(jnp.asarray([[0.0, 0.2, 0.5, -0.3]]), (4000, 1))
    d = drawn(candidates(scores))
    share = jnp.bincount(bns.hardest(d)[0], length=4) / 4000
    chex.assert_trees_all_close(share, jax.nn.softmax(d.adjusted[0]), atol=0.03)
    assert float(jnp.abs(bns.hardest(d)[0] - bns.hardest(drawn(candidates(scores), seed=1))[0]).max()) > 0


@pytest.mark.parametrize("tau_g", [0.5, 2.0])
def test_q_is_the_softmax_of_the_perturbed_scores_over_its_temperature(tau_g):
    d = drawn(candidates(np.random.default_rng(0).normal(size=(5, 6))), tau_g=tau_g)
    chex.assert_trees_all_close(d.q, jax.nn.softmax(d.perturbed / tau_g, axis=1), rtol=1e-5)


def test_a_constant_in_the_policys_scores_changes_nothing():
    valid = jnp.asarray(np.random.default_rng(1).random((5, 6)) < 0.7)
    c = candidates(np.random.default_rng(0).normal(size=(5, 6)), valid)
    plus = lambda x: lambda anchor, columns, pick, s, boundary: 0.3 * s + x  # noqa: E731
    chex.assert_trees_all_close(drawn(c, plus(0.0)).adjusted, drawn(c, plus(5.0)).adjusted, atol=1e-5)


@pytest.mark.parametrize(
    ("reward", "alpha", "sign"), [("boundary", -0.5, 1), ("boundary", 0.3, 1), ("schedule", -0.5, 1), ("schedule", 0.3, -1)]
)
def test_the_reward_is_the_boundary_score_or_what_the_schedule_wants(reward, alpha, sign):
    c = candidates([[0.1, 0.4, -0.2]])
    config = BNSConfig(reward=reward, entropy_bonus=0.0)
    d = drawn(c)
    found = bns.policy_loss(d, alpha=jnp.float32(alpha), config=config)
    gain = float((d.q * c.boundary).sum()) * (1 if reward == "boundary" else abs(alpha) / config.tau_b)
    assert float(found) == pytest.approx(-sign * gain, rel=1e-4)


def test_the_entropy_bonus_lowers_the_loss_of_an_even_draw():
    even, sharp = drawn(candidates([[0.0, 0.0]])), drawn(candidates([[0.0, 9.0]]), alpha=-5.0)
    loss = lambda d, bonus: float(bns.policy_loss(d, alpha=jnp.float32(0.0), config=BNSConfig(entropy_bonus=bonus)))  # noqa: E731
    assert loss(even, 1.0) - loss(even, 0.0) == pytest.approx(-np.log(2), rel=1e-4)
    assert loss(sharp, 1.0) - loss(sharp, 0.0) == pytest.approx(0.0, abs=1e-4)


def test_eps_says_what_is_ambiguous():
    d = drawn(candidates([[0.05, -0.05, 0.2, -0.2]]))
    shares = [float(bns.diagnostics(d, BNSConfig(eps=eps))["ambiguous_share"]) for eps in (0.01, 0.1, 0.3)]
    assert shares == [0.0, 0.5, 1.0]


def test_the_drawn_candidates_are_described_by_quantiles_and_their_false_positives():
    """With one valid candidate an anchor, what is drawn is known; an anchor without any does not count."""
    boundary = np.linspace(-0.65, 0.35, 11)
    s = np.stack([boundary, np.full(11, 9.0)], axis=1)
    valid = np.asarray([[True, False]] * 11)
    found = bns.diagnostics(drawn(candidates(s, jnp.asarray(valid))), BNSConfig())
    spread = [float(found[f"bs_drawn_p{level}"]) for level in (10, 50, 90)]
    np.testing.assert_allclose(spread, np.quantile(boundary, (0.1, 0.5, 0.9)), atol=1e-6)
    assert float(found["false_positive_share"]) == pytest.approx(4 / 11)
    valid[6:] = False
    found = bns.diagnostics(drawn(candidates(s, jnp.asarray(valid))), BNSConfig())
    assert float(found["bs_drawn_p50"]) == pytest.approx(np.median(boundary[:6]), abs=1e-6)
    assert float(found["false_positive_share"]) == 0
    nothing = bns.diagnostics(drawn(candidates(s, jnp.zeros((11, 2), bool))), BNSConfig())
    assert all(float(nothing[name]) == 0 for name in ("bs_drawn_p10", "bs_drawn_p50", "bs_drawn_p90", "false_positive_share"))
