"""The matching problem of one angle: exact risk against a sample, the exact fit against a grid, the draws, the margin's schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.theory import bacl_index, bacl_margin
from bacl_jax.theory.bacl_angle import Law, comparisons, excess_risk, fit
from bacl_jax.theory.bacl_learner import SAMPLERS


@pytest.mark.parametrize("theta", [0.03, -0.4, 2.5])
def test_excess_risk_equals_that_of_a_large_sample(theta):
    law = Law()
    x = np.asarray(comparisons(jax.random.key(0), law, 2000, 100), float)
    paired = np.sin(x).min(1) > 0  # the others are mispaired: 100 comparisons on one side by chance are out of the question
    cost = (np.sin(x - theta) < 0).mean(1).astype(float) - (np.sin(x) < 0).mean(1)
    assert abs(paired.mean() - (1 - law.mispaired)) < 0.03
    assert abs(cost.mean() - excess_risk(law, jnp.asarray(theta))) < 4 * cost.std() / np.sqrt(len(cost))


def test_the_true_rule_has_no_excess_risk():
    assert excess_risk(Law(), jnp.asarray(0.0)) == 0


def test_fit_is_the_best_of_a_fine_grid():
    x = comparisons(jax.random.key(1), Law(mispaired=0.4), 60, 1)[:, 0]
    agree = lambda theta: int((np.sin(np.asarray(x) - theta) > 0).sum())  # noqa: E731
    best = max(agree(theta) for theta in np.linspace(-np.pi, np.pi, 20_001))
    assert agree(float(fit(x, jnp.ones(60)))) >= best


def test_comparisons_of_weight_0_change_nothing():
    x = comparisons(jax.random.key(2), Law(), 50, 1)[:, 0]
    junk = jnp.concatenate([x, jnp.full(30, -1.0)])
    assert fit(junk, jnp.repeat(jnp.asarray([1.0, 0.0]), jnp.asarray([50, 30]), total_repeat_length=80)) == pytest.approx(
        float(fit(x, jnp.ones(50))), abs=1e-3
    )


def test_samplers_draw_what_they_say():
    x = comparisons(jax.random.key(3), Law(mispaired=0.0), 200, 200)
    boundary, key = -jnp.sin(x), jax.random.key(4)

    def drawn(sampler, u):
        return jnp.take_along_axis(boundary, SAMPLERS[sampler](key, boundary, jnp.asarray(u))[:, None], 1).mean()

    assert drawn("hardest", 0.0) == boundary.max(1).mean()
    assert drawn("bns", 0.0) < drawn("bns", 1.0) < drawn("hardest", 1.0)
    assert drawn("uniform", 1.0) < drawn("bns", 1.0)


def test_slope_of_a_power_is_the_power():
    x = np.array([1.0, 2, 4, 8])
    exact, low, high = bacl_index.slope_and_interval(x, np.repeat(3 * x[:, None] ** -0.5, 6, 1))
    assert [exact, low, high] == pytest.approx([-0.5] * 3)


def test_quadrature_has_the_share_asked_for():
    x, weight = bacl_margin.quadrature(rho=0.3, eps=0.2)
    assert weight.sum() == pytest.approx(1)
    assert weight[np.sin(x) < np.sin(0.2)].sum() == pytest.approx(0.3)


def test_hard_negatives_contract_the_margin_faster_than_uniform_ones():
    with jax.enable_x64(True):
        x, weight = (jnp.asarray(v) for v in bacl_margin.quadrature())
        hard, uniform = (np.asarray(bacl_margin.margins(x, weight, bacl_margin.BNS[name])) for name in ("hard from the start", "uniform"))
    assert hard.dtype == np.float64
    assert (np.diff(hard) < 0).all()
    assert hard[-1] < uniform[-1] / 10
