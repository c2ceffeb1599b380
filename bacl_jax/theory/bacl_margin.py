"""Proposition 4.1 of BACL (arXiv 2511.08399): how fast the margin contracts, on the gradient flow of bacl_angle.py's problem."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from bacl_jax.config_objective import BNSConfig
from bacl_jax.objective.bns import adjusted_score
from bacl_jax.schedules import curriculum
from bacl_jax.theory.experiment import Experiment, Result, Tick

EPOCHS, STEPS = 20, 20
POINTS = 1000  # of the quadrature over ambiguous and over other negatives, each
SCALE, RATE, START = 10.0, 2e-4, 0.05  # of the logits, of the gradient step; the first angle, within eps
BNS = {
    "uniform": BNSConfig(alpha_early=0.0, alpha_late=0.0),
    "hard from the start": BNSConfig(alpha_early=-0.5),
    "BNS, midpoint 0.15": BNSConfig(),
    "BNS, midpoint 0.5": BNSConfig(midpoint=0.5),
}
NAMES = dict(zip(BNS, ("uniform", "hard", "bns", "bns_late_midpoint"), strict=True))  # in metrics


def quadrature(rho: float = 0.2, eps: float = 0.1) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Angles x of well-paired comparisons, both ends of the boundary, and their weights (sum 1): Law(rho, eps, order=1, mispaired=0)."""
    share = (np.arange(POINTS) + 0.5) / POINTS
    d = np.concatenate([eps * np.sqrt(share), eps + (np.pi / 2 - eps) * share])
    weight = np.repeat([rho, 1 - rho], POINTS) / (2 * POINTS)
    return np.concatenate([d, np.pi - d]), np.concatenate([weight, weight])


@partial(jax.jit, static_argnames="config")
def margins(x: Float[Array, " P"], weight: Float[Array, " P"], config: BNSConfig) -> Float[Array, " epochs"]:
    """|theta| after each epoch: gradient steps on the expected logistic loss of what BNS draws, policy score 0, noise integrated out.

    An anchor with many candidates draws x with probability proportional to weight e^a. |theta| is the largest angle to the true
    boundary of a comparison that the rule gets wrong.
    """

    def step(theta: Array, number: Array) -> tuple[Array, None]:
        alpha = curriculum(number / (EPOCHS * STEPS), config)
        boundary = -jnp.sin(x - theta)
        a = adjusted_score(jnp.zeros_like(boundary)[None], boundary[None], jnp.ones((1, len(x)), bool), alpha, config.tau_b)[0]
        q = jax.nn.softmax(a + jnp.log(weight))
        slope = (q * SCALE * jnp.cos(x - theta) * jax.nn.sigmoid(SCALE * boundary)).sum()
        return theta - RATE * slope, None

    def epoch(theta: Array, e: Array) -> tuple[Array, Array]:
        theta = jax.lax.scan(step, theta, e * STEPS + jnp.arange(STEPS))[0]
        return theta, jnp.abs(theta)

    return jax.lax.scan(epoch, jnp.asarray(START, x.dtype), jnp.arange(EPOCHS))[1]


def explained(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float:
    """R^2 of the straight line of y in x."""
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def contraction(tick: Tick) -> Result:
    """Log margin against eta and eta^2 for each schedule, and against the schedule's own prediction: the sum of max(-alpha, 0)."""
    epoch = np.arange(1, EPOCHS + 1)
    rows, metrics = [], {}
    for label, config in BNS.items():
        with jax.enable_x64(True):
            margin = np.asarray(margins(*map(jnp.asarray, quadrature()), config))
        alpha = np.asarray([curriculum(number / (EPOCHS * STEPS), config) for number in range(EPOCHS * STEPS)], float)
        pull = np.maximum(-alpha, 0).reshape(EPOCHS, STEPS).sum(1).cumsum()  # easy negatives do not push the boundary back
        rows += [{"schedule": label, "epoch": e, "margin": m, "pull": p} for e, m, p in zip(epoch, margin, pull, strict=True)]
        metrics |= {f"{NAMES[label]}_margin_r2_{of}": explained(z, np.log(margin)) for of, z in (("eta", epoch), ("eta2", epoch**2))}
        if np.ptp(alpha) > 0:
            metrics[f"{NAMES[label]}_margin_r2_schedule"] = explained(pull, np.log(margin))
        tick(1 / len(BNS))
    found = "; ".join(
        f"{label} {metrics[f'{key}_margin_r2_eta']:.3f}, {metrics[f'{key}_margin_r2_eta2']:.3f}" for label, key in NAMES.items()
    )
    return Result(pd.DataFrame(rows), metrics, f"R^2 of log margin on eta and on eta^2: {found}.")


def draw_contraction(result: Result, figure: Figure) -> None:
    """Log margin against eta and against eta^2: the law that holds is the panel with the straight line."""
    left, right = figure.subplots(1, 2, sharey=True)
    for label, group in result.table.groupby("schedule", sort=False):
        for ax, power, name in ((left, 1, "eta"), (right, 2, "eta2")):
            r2 = result.metrics[f"{NAMES[str(label)]}_margin_r2_{name}"]
            ax.semilogy(group.epoch**power, group.margin, ".-", label=f"{label}: R² {r2:.3f}")
    left.set(xlabel="eta, epochs", ylabel="margin: angle to the true boundary")
    right.set(xlabel="eta², epochs squared")
    for ax in (left, right):
        ax.legend(fontsize=7, frameon=False, loc="lower left")


CLAIM = "Prop 4.1: the margin contracts as exp(-Theta(eta^2)) in epochs eta (arXiv 2511.08399)"
EXPERIMENTS = (Experiment("bacl_margin", CLAIM, contraction, draw_contraction),)
