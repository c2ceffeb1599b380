"""Rates of a run: by the time of its steps, with and without a known peak."""

import jax
import jax.numpy as jnp
import pytest

from bacl_jax.train import cost, speed
from bacl_jax.train.goodput import Goodput
from bacl_jax.train.speed import Speed


class Account(Goodput):
    """Of a run whose steps take a second each, a quarter of a second of it waiting; evaluations are in another activity."""

    def __init__(self):
        self.steps = 0

    def seconds(self):
        return {"steps": 0.75 * self.steps, "data": 0.25 * self.steps, "evaluation": 100.0 * self.steps}


def test_rates(monkeypatch):
    account, device = Account(), jax.devices()[0]
    monkeypatch.setitem(cost.PEAKS, device.device_kind, 1000.0)
    found = Speed(account, 16, [device, device])
    work = jax.jit(lambda x: x @ x)
    found.count(work, jnp.ones((4, 4)))
    assert found.update(1).keys() == {"memory_gib"}
    for step in range(2, 100):
        account.steps += 1
        found.update(step)
    assert found.latest["pairs_per_second"] == 16
    assert found.latest["data_wait"] == 25
    assert found.latest["mfu"] == pytest.approx(100 * 2 * 4**3 / (1000 * 2))
    assert 0.01 < found.latest["memory_gib"] < 1000
    assert len(found._window) <= speed.WINDOW + 2


def test_without_a_known_peak_there_is_no_mfu():
    account = Account()
    found = Speed(account, 16, jax.devices()[:1])
    found.count(None)  # nothing is looked at
    found.update(1)
    account.steps = 1
    assert "mfu" not in found.update(2)
    assert found.latest["pairs_per_second"] == 16


def test_a_step_whose_flops_cannot_be_counted_has_none(monkeypatch):
    device = jax.devices()[0]
    monkeypatch.setitem(cost.PEAKS, device.device_kind, 1000.0)
    account = Account()
    found = Speed(account, 16, [device])
    found.count(jax.jit(lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ y, x)), jnp.ones((2, 2)))
    found.update(1)
    account.steps = 1
    assert "mfu" not in found.update(2)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v4 lite", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("NVIDIA L40S", 362e12),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert cost.peak_flops(kind) == peak
