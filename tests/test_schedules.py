"""What changes with progress."""

import dataclasses

import numpy as np
import pytest

from bacl_jax import schedules
from bacl_jax.config import OptimConfig
from bacl_jax.config_objective import BNSConfig


def test_progress_is_clipped():
    assert [float(schedules.progress(s, 10)) for s in (0, 5, 10, 20)] == pytest.approx([0, 0.5, 1, 1])


def test_curriculum_falls_and_changes_sign():
    alpha = [float(schedules.curriculum(u, BNSConfig())) for u in np.linspace(0, 1, 11)]
    assert alpha == sorted(alpha, reverse=True)
    assert alpha[0] > 0 > alpha[-1]


def test_partner_share_grows_to_its_value():
    config = BNSConfig(enabled=True, partner_share=0.4, midpoint=0.5)
    assert [schedules.partner_share(s, 100, config) for s in (0, 25, 50, 100)] == pytest.approx([0, 0.2, 0.4, 0.4])
    assert schedules.partner_share(100, 100, BNSConfig(enabled=False, partner_share=0.4)) == 0


def test_learning_rate_warms_up_and_ends():
    rate = schedules.learning_rate(OptimConfig(lr=1.0, warmup_steps=10, end_lr_share=0.1), 100)
    assert [float(rate(s)) for s in (0, 5, 10, 100)] == pytest.approx([0, 0.5, 1, 0.1])
    assert np.isfinite(float(schedules.learning_rate(OptimConfig(warmup_steps=50), 2)(1)))


@pytest.mark.parametrize(
    ("field", "value", "u", "change"),
    [
        ("alpha_early", 0.6, 0.0, 0.271),
        ("alpha_late", -1.0, 1.0, -0.5),
        ("slope", 3.0, 0.25, -0.108),
        ("horizon", 20.0, 0.25, -0.108),
        ("midpoint", 0.5, 0.25, 0.636),
    ],
)
def test_each_field_of_the_curriculum_acts(field, value, u, change):
    base = BNSConfig()
    assert float(schedules.curriculum(u, dataclasses.replace(base, **{field: value})) - schedules.curriculum(u, base)) == pytest.approx(
        change, abs=2e-3
    )
