"""Paired statistics of a study."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bacl_jax.eval import study


def runs():
    rows = [
        {"variant": v, "seed": s, "holdout": "compositional", "budget": b, "step_ms": ms, "steps": 10, "R": value + s}
        for v, b, ms, value in (("clip", "steps", 100.0, 1.0), ("clip", "time", 100.0, 2.0), ("bacl", "steps", 120.0, 4.0))
        for s in range(4)
        if not (v == "bacl" and s == 3)
    ]
    return pd.DataFrame(rows)


def test_interval_is_the_t_interval():
    d = np.array([1.0, 2.5, 0.3, 1.7])
    got = study.interval(d)
    low, high = stats.t.interval(0.95, 3, loc=d.mean(), scale=stats.sem(d))
    assert (got.mean - got.half_width, got.mean + got.half_width) == pytest.approx((low, high))
    assert str(study.interval([2.0, 2.1, 2.2])).endswith("*")
    assert "*" not in str(study.interval([-1.0, 1.0]))
    assert study.interval([]).n == 0
    assert str(study.interval([])) == "-"


def test_pairs_share_the_seed():
    got = study.paired(runs(), "R", variant="bacl", baseline="clip", holdout="compositional", budget="steps", baseline_budget="time")
    assert (got.mean, got.n) == (2.0, 3)
    assert study.paired(runs(), "none", variant="bacl", baseline="clip", holdout="x", budget="steps", baseline_budget="steps").n == 0


def test_step_cost_and_table():
    assert study.step_cost(runs(), variant="bacl", baseline="clip", holdout="compositional") == pytest.approx(1.2)
    assert study.markdown([["1", "2"]], ["a", "b"]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
