"""BACL's statements (arXiv 2511.08399, section 4) where the candidates come from an index of all n captions: bacl_angle.py."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from scipy import stats

from bacl_jax.theory.bacl_angle import Law, comparisons, excess_risk, fit
from bacl_jax.theory.bacl_learner import SAMPLERS, angles
from bacl_jax.theory.drawing import slope
from bacl_jax.theory.experiment import Experiment, Result, Tick

SIZES = (64, 128, 256, 512, 1024)
SEEDS = 48
FLAT = Law(order=0.0)  # the test: ambiguous pairs are as frequent at the boundary as anywhere within eps of it
RHOS = (0.01, 0.03, 0.1, 0.3, 0.9)
FLOOR_SIZES = (100, 1000, 10_000)


def slope_and_interval(x: Float[np.ndarray, " P"], y: Float[np.ndarray, "P S"], draws: int = 500) -> tuple[float, float, float]:
    """Slope of log mean_S y against log x, and its 95 % interval: a bootstrap over the S seeds, which are independent at each x."""
    rng = np.random.default_rng(0)
    again = [slope(x, np.take_along_axis(y, rng.integers(0, y.shape[1], y.shape), 1).mean(1)) for _ in range(draws)]
    low, high = np.quantile(again, (0.025, 0.975))
    return slope(x, y.mean(1)), float(low), float(high)


def rates(tick: Tick) -> Result:
    """Theorem 4.1: n anchors, each with an index of n negatives, of which it draws one a round."""
    rows = []
    for sampler in SAMPLERS:
        for n in SIZES:
            theta = angles(Law(), anchors=n, negatives=n, sampler=sampler, seeds=SEEDS)
            own, flat = (np.asarray(excess_risk(law, theta), float) for law in (Law(), FLAT))
            rows += [{"sampler": sampler, "n": n, "seed": s, "risk": flat[s], "risk_as_drawn": own[s]} for s in range(SEEDS)]
        tick(1 / len(SAMPLERS))
    table = pd.DataFrame(rows)
    metrics = {}
    for column, suffix in (("risk", ""), ("risk_as_drawn", "_as_drawn")):
        for sampler, group in table.groupby("sampler", sort=False):
            values = group.pivot(index="n", columns="seed", values=column)
            found = slope_and_interval(np.asarray(values.index, float), values.to_numpy())
            names = (f"{sampler}_risk_slope{suffix}{end}" for end in ("", "_low", "_high"))
            metrics |= dict(zip(names, found, strict=True))
    found = ", ".join(f"{s} {interval(metrics, f'{s}_risk_slope')}" for s in SAMPLERS)
    own = ", ".join(f"{s} {interval(metrics, f'{s}_risk_slope_as_drawn')}" for s in SAMPLERS)
    verdict = (
        f"Slopes of log excess risk in log n: {found} (predicted: -1/2 for uniform, -1 for BNS). On negatives as they are drawn: {own}."
    )
    return Result(table, metrics, verdict)


def interval(metrics: Mapping[str, float], name: str) -> str:
    """The metric and its 95 % interval."""
    return f"{metrics[name]:.2f} [{metrics[f'{name}_low']:.2f}, {metrics[f'{name}_high']:.2f}]"


def draw_rates(result: Result, figure: Figure) -> None:
    """Mean over the seeds against n, each sampler beside the reference slope that is predicted for it."""
    ax = figure.add_subplot()
    for sampler, group in result.table.groupby("sampler", sort=False):
        mean = group.groupby("n").risk.mean()
        ax.loglog(mean.index, mean, "o-", label=f"{sampler}: slope {interval(result.metrics, f'{sampler}_risk_slope')}")
        if sampler != "hardest":
            power = {"uniform": -0.5, "bns": -1.0}[str(sampler)]
            n = mean.index.to_numpy(float)
            ax.loglog(n, 1.4 * mean.iloc[0] * (n / n[0]) ** power, "--", color="gray", lw=1, label=f"reference: slope {power:g}")
    ax.set(xlabel="n, anchors and captions in the index", ylabel="excess risk on evenly placed ambiguous pairs")
    ax.legend(fontsize=8, frameon=False)


@partial(jax.jit, static_argnames=("n", "seeds"))
def uniform_risks(rhos: Float[Array, " R"], *, n: int, seeds: int) -> Float[Array, "R {seeds}"]:
    """Exact excess risk of the rule fitted to n uniform draws, on negatives as they are drawn."""

    def one(rho: Array, seed: Array) -> Array:
        law = Law(rho=rho)
        x = comparisons(jax.random.fold_in(jax.random.key(n), seed), law, n, 1)[:, 0]
        return excess_risk(law, fit(x, jnp.ones_like(x)))

    return jax.lax.map(lambda rho: jax.lax.map(partial(one, rho), jnp.arange(seeds), batch_size=50), rhos)


def floor(tick: Tick) -> Result:
    """Theorem 4.2: excess risk n / rho of uniform sampling over a grid of rho and n."""
    rows = []
    for n in FLOOR_SIZES:
        risk = np.asarray(uniform_risks(jnp.asarray(RHOS), n=n, seeds=200), float)
        rows += [
            {"n": n, "rho": rho, "risk": r.mean(), "standard_error": stats.sem(r), "risk_n_over_rho": r.mean() * n / rho}
            for rho, r in zip(RHOS, risk, strict=True)
        ]
        tick(1 / len(FLOOR_SIZES))
    table = pd.DataFrame(rows)
    largest = table[table.n == FLOOR_SIZES[-1]]
    metrics = {
        "uniform_floor": float(table.risk_n_over_rho.min()),
        "uniform_risk_slope_in_rho": slope(np.asarray(largest.rho), np.asarray(largest.risk)),
    }
    verdict = (
        f"Excess risk n / rho is at least {metrics['uniform_floor']:.2f}, so the bound holds. It is loose: at n = {FLOOR_SIZES[-1]} "
        f"the risk goes as rho^{metrics['uniform_risk_slope_in_rho']:.2f}, not as rho."
    )
    return Result(table, metrics, verdict)


def draw_floor(result: Result, figure: Figure) -> None:
    """n times the risk against rho: the bound is the straight line of slope 1 below the points."""
    ax = figure.add_subplot()
    for n, group in result.table.groupby("n"):
        ax.errorbar(group.rho, group.risk * group.n, 1.96 * group.standard_error * group.n, marker="o", capsize=2, label=f"n = {n}")
    rho = np.asarray(RHOS)
    floor_line = result.metrics["uniform_floor"] * rho
    ax.plot(rho, floor_line, "--", color="gray", label=f"{result.metrics['uniform_floor']:.2f} rho: the bound's form")
    ax.set(xscale="log", yscale="log", xlabel="rho, share of ambiguous negatives", ylabel="n times the excess risk of uniform sampling")
    ax.legend(fontsize=8, frameon=False)


RATES = "Thm 4.1: excess risk falls as O~(1/n) with boundary-aware negatives, as O~(1/sqrt n) without (arXiv 2511.08399)"
FLOOR = "Thm 4.2: uniform sampling pays Omega(rho / n), rho the share of ambiguous negatives (arXiv 2511.08399)"
EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("bacl_index_rates", RATES, rates, draw_rates),
    Experiment("bacl_index_floor", FLOOR, floor, draw_floor),
)
