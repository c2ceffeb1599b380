"""BACL's statements as experiments: the exact risk against a sample, the draws, the fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.theory import bacl
from bacl_jax.theory.bacl_setting import Problem, Sampler, candidates, draw, excess_risk, train

SMALL = Problem(anchors=8, pool=16)


@pytest.mark.parametrize("w", [(0.9, 0.3, 0.2, -0.1), (-0.5, 0.5, 0.5, 0.5)])
def test_excess_risk_equals_that_of_a_large_sample(w):
    problem, w, rho = Problem(anchors=400, pool=1000), jnp.asarray(w), jnp.float32(0.3)
    x, _ = candidates(jax.random.key(1), problem, rho)
    cost = jnp.where(jnp.abs(x[..., 0]) <= problem.eps, problem.h, 1.0)
    loss = np.asarray(cost * ((x @ w) * x[..., 0] < 0), float)
    assert abs(loss.mean() - excess_risk(w, problem, rho)) < 4 * loss.std() / np.sqrt(loss.size)


def test_the_true_rule_has_no_excess_risk():
    assert excess_risk(jnp.eye(4)[0], Problem(), jnp.float32(0.3)) < 1e-6


def test_share_and_noise_are_those_asked_for():
    problem = Problem(anchors=400, pool=500)
    x, y = candidates(jax.random.key(2), problem, jnp.float32(0.25))
    ambiguous, wrong = jnp.abs(x[..., 0]) <= problem.eps, y * x[..., 0] < 0
    assert abs(ambiguous.mean() - 0.25) < 0.005
    assert abs(wrong[ambiguous].mean() - (1 - problem.h) / 2) < 0.01
    assert not wrong[~ambiguous].any()


def test_samplers_draw_what_they_say():
    w = jnp.eye(4)[0]
    x, y = candidates(jax.random.key(3), Problem(anchors=500), jnp.float32(0.2))

    def drawn(sampler, progress):
        pick = draw(jax.random.key(4), w, x, y, sampler, progress=jnp.float32(progress), tau_b=jnp.float32(0.05))
        return x[jnp.arange(500), pick] @ w, jnp.take_along_axis(y, pick[:, None], 1)[:, 0]

    s, label = drawn(Sampler(hardest=True), 0)
    assert jnp.array_equal(-label * s, (-y * (x @ w)).max(1))
    early, uniform, late = (
        jnp.abs(drawn(sampler, u)[0]).mean()
        for sampler, u in zip((Sampler(curriculum=True), Sampler(), Sampler(curriculum=True)), (0, 0, 1), strict=True)
    )
    assert late < uniform / 2 < uniform < early


def test_training_finds_the_boundary():
    w = train(jax.random.split(jax.random.key(5), 4), SMALL, Sampler(), 100, jnp.float32(0.2))
    first, last = (bacl.risks(w[:, e], 0.2).mean() for e in (0, -1))
    assert w.shape == (4, 100, 4)
    assert last < first / 3


def test_fits():
    x = np.array([1.0, 2, 4, 8])
    mean, half = bacl.slope(x, np.stack([x**-1.0, 3 * x**-0.5]))
    assert mean == pytest.approx(-0.75)
    assert half == pytest.approx(12.706 * 0.25, rel=1e-3)
    assert bacl.explained(x, 2 - 3 * x) == pytest.approx(1)
