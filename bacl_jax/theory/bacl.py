"""BACL's statements (arXiv 2511.08399, Theorems 4.1 and 4.2, Proposition 4.1) on the matching problem of bacl_setting.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from scipy import stats

from bacl_jax.theory.bacl_setting import Problem, Sampler, excess_risk, tangent, train
from bacl_jax.theory.experiment import Experiment, Result, Tick

SAMPLERS = {
    "uniform": Sampler(),
    "hardest": Sampler(hardest=True),
    "bns": Sampler(curriculum=True, tau_b=1.0, decay=0.5),
    "bns_fixed": Sampler(curriculum=True),
}
LABELS = {"uniform": "uniform", "hardest": "hardest always", "bns": "BNS, tau_b ~ 1/sqrt(round)", "bns_fixed": "BNS, tau_b fixed"}
ROUNDS = (16, 40, 100, 250)
RHOS = (0.02, 0.05, 0.1, 0.2, 0.4)
RHO = 0.2
SEEDS = 8
EPOCH = 10  # rounds
POOL_OF_UNIFORM = 1  # a uniform draw from a pool is a uniform draw


def models(name: str, rounds: int, rho: float, seeds: int) -> Float[Array, "seeds rounds D"]:
    """Models of one sampler after each round; seed s sees the same stream in every run that shares its pool."""
    problem = Problem(pool=POOL_OF_UNIFORM) if name == "uniform" else Problem()
    return train(jax.random.split(jax.random.key(0), seeds), problem, SAMPLERS[name], rounds, jnp.float32(rho))


def risks(w: Float[Array, "seeds D"], rho: float) -> Float[np.ndarray, " seeds"]:
    """Exact excess risk of each seed's model."""
    return np.asarray(jax.vmap(excess_risk, (0, None, None))(w, Problem(), jnp.float32(rho)), float)


def slope(x: Float[np.ndarray, " P"], y: Float[np.ndarray, "seeds P"]) -> tuple[float, float]:
    """Mean over the seeds of the slope of log y in log x, and the half-width of its 95 % t interval."""
    each = [stats.linregress(np.log(x), np.log(row)).slope for row in y]
    half = stats.t.ppf(0.975, len(each) - 1) * np.std(each, ddof=1) / np.sqrt(len(each))
    return float(np.mean(each)), float(half)


def explained(x: Float[np.ndarray, " P"], y: Float[np.ndarray, " P"]) -> float:
    """R^2 of the line through y against x."""
    return float(stats.linregress(x, y).rvalue ** 2)


def rates(tick: Tick) -> Result:
    """Theorem 4.1: excess risk against n for each sampler."""
    n = Problem().anchors * np.asarray(ROUNDS)
    rows, metrics = [], {}
    for name in SAMPLERS:
        risk = np.stack([risks(models(name, rounds, RHO, SEEDS)[:, -1], RHO) for rounds in ROUNDS], 1)
        rows += [
            {"sampler": name, "n": size, "seed": seed, "risk": value}
            for size, column in zip(n, risk.T, strict=True)
            for seed, value in enumerate(column)
        ]
        metrics[f"{name}_risk_slope"], metrics[f"{name}_risk_slope_half_width"] = slope(n, risk)
        tick(1 / len(SAMPLERS))
    found = ", ".join(
        f"{LABELS[name]} {metrics[f'{name}_risk_slope']:.2f} ± {metrics[f'{name}_risk_slope_half_width']:.2f}" for name in SAMPLERS
    )
    return Result(pd.DataFrame(rows), metrics, f"Slopes of log excess risk in log n: {found}; predicted -1 for BNS and -1/2 for uniform.")


def draw_rates(result: Result, figure: Figure) -> None:
    """Geometric mean over the seeds against n, with the two predicted slopes."""
    axes = figure.add_subplot()
    for name, group in result.table.groupby("sampler", sort=False):
        mean = np.exp(np.log(group.risk).groupby(group.n).mean())
        axes.loglog(mean.index, mean, "o-", label=f"{LABELS[str(name)]}: slope {result.metrics[f'{name}_risk_slope']:.2f}")
    n = np.unique(result.table.n)
    start = result.table.query("sampler == 'uniform'").risk.max()
    for power, style in ((-0.5, "--"), (-1.0, ":")):
        axes.loglog(n, start * (n / n[0]) ** power, style, color="gray", label=f"reference: slope {power:g}")
    axes.set(xlabel="n, drawn pairs with an annotation", ylabel="excess risk")
    axes.legend(fontsize=8)


def floor(tick: Tick) -> Result:
    """Theorem 4.2: risk * n / rho of uniform sampling, for several rho and n."""
    rows = []
    for rounds in ROUNDS:
        for rho in RHOS:
            risk = risks(models("uniform", rounds, rho, 2 * SEEDS)[:, -1], rho)
            n = Problem().anchors * rounds
            rows.append({"n": n, "rho": rho, "risk": risk.mean(), "standard_error": stats.sem(risk), "scaled": risk.mean() * n / rho})
        tick(1 / len(ROUNDS))
    table = pd.DataFrame(rows)
    largest = table[table.n == table.n.max()]
    metrics = {
        "uniform_floor": float(table.scaled.min()),
        "uniform_risk_rho_exponent": float(stats.linregress(np.log(largest.rho), np.log(largest.risk)).slope),
        "uniform_scaled_growth_in_n": float(stats.linregress(np.log(table.n), np.log(table.scaled)).slope),
    }
    verdict = (
        f"risk n / rho is never below {metrics['uniform_floor']:.2f} and grows as n^{metrics['uniform_scaled_growth_in_n']:.2f}: "
        f"the bound holds, and is loose. The risk goes as rho^{metrics['uniform_risk_rho_exponent']:.2f} at the largest n."
    )
    return Result(table, metrics, verdict)


def draw_floor(result: Result, figure: Figure) -> None:
    """Risk n / rho against n, a line for each rho: a flat line would be a tight bound."""
    axes = figure.add_subplot()
    for rho, group in result.table.groupby("rho"):
        axes.errorbar(group.n, group.scaled, group.standard_error * group.n / group.rho, marker="o", capsize=2, label=f"rho = {rho:g}")
    axes.axhline(result.metrics["uniform_floor"], color="gray", linestyle="--", label="smallest value")
    axes.set(xscale="log", yscale="log", xlabel="n, uniformly drawn pairs", ylabel="excess risk * n / rho")
    axes.legend(fontsize=8)


def contraction(tick: Tick) -> Result:
    """Proposition 4.1: tangent of the angle to the true boundary after each epoch, and which power of the epoch its log follows."""
    rows, metrics = [], {}
    for name in SAMPLERS:
        margin = np.asarray(jax.vmap(jax.vmap(tangent))(models(name, ROUNDS[-1], RHO, SEEDS)[:, EPOCH - 1 :: EPOCH]), float)
        log_margin = np.log(margin).mean(0)
        epoch = np.arange(1.0, len(log_margin) + 1)
        rows += [{"sampler": name, "epoch": e, "margin": m} for e, m in zip(epoch, np.exp(log_margin), strict=True)]
        for of, x in {"eta": epoch, "eta2": epoch**2, "log_eta": np.log(epoch)}.items():
            metrics[f"{name}_r2_{of}"] = explained(x, log_margin)
        tick(1 / len(SAMPLERS))
    found = "; ".join(
        f"{LABELS[name]} {metrics[f'{name}_r2_eta2']:.2f}, {metrics[f'{name}_r2_eta']:.2f}, {metrics[f'{name}_r2_log_eta']:.2f}"
        for name in SAMPLERS
    )
    return Result(pd.DataFrame(rows), metrics, f"R^2 of log margin on eta^2, eta, log eta (Prop. 4.1 says eta^2): {found}.")


def draw_contraction(result: Result, figure: Figure) -> None:
    """Margin against eta^2, where the proposition is a straight line, and against log eta, where a power of eta is one."""
    left, right = figure.subplots(1, 2, sharey=True)
    for name, group in result.table.groupby("sampler", sort=False):
        left.semilogy(group.epoch**2, group.margin, ".-", label=LABELS[str(name)])
        right.loglog(group.epoch, group.margin, ".-")
    left.set(xlabel="eta^2 (epochs squared)", ylabel="margin: tangent of the angle to the true boundary")
    right.set(xlabel="eta (epochs)")
    left.legend(fontsize=8)


FAST = "Theorem 4.1: with boundary-aware negatives the excess risk falls as O~(1/n), against O~(1/sqrt n) (arXiv 2511.08399)"
PAYS = "Theorem 4.2: uniform sampling pays Omega(rho / n), rho the share of ambiguous negatives (arXiv 2511.08399)"
CONTRACTS = "Proposition 4.1: the margin contracts as exp(-Theta(eta^2)) in epochs eta (arXiv 2511.08399)"

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("bacl_rates", FAST, rates, draw_rates),
    Experiment("bacl_floor", PAYS, floor, draw_floor),
    Experiment("bacl_contraction", CONTRACTS, contraction, draw_contraction),
)
