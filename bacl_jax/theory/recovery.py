"""Where MMCL finds features that contrastive learning in one modality does not (arXiv 2302.06232, claim ii)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from bacl_jax.theory import linear, spiked
from bacl_jax.theory.experiment import Experiment, Result, Tick

FEATURES, RANK, NOISY = 40, 4, 8  # noise is stronger along NOISY of the coordinates or directions
SIGNAL, NOISE = 1.5, 0.5  # standard deviations
FACTORS = (1.0, 2.0, 3.0, 4.0, 6.0)  # of the stronger noise
SIZE, SEEDS, SHARES = 20_000, 10, (1.0, 0.7)
JUDGED = 4.0  # the factor that the verdict is about


@partial(jax.jit, static_argnames="turned")
def _recovery(keys: Array, counts: Array, noises: Array, turned: bool) -> tuple[Array, Array]:
    def one(key: Array, count: Array, noise: Array) -> tuple[Array, Array]:
        of_model, of_data = jax.random.split(key)
        model = spiked.draw(of_model, jnp.full(RANK, SIGNAL), noise, noise, turned=turned)
        joint = spiked.covariance(of_data, model, count)
        x, y = slice(FEATURES), slice(FEATURES, None)
        alone = (
            linear.sin_theta(linear.unimodal(joint[x, x], RANK), model.u),
            linear.sin_theta(linear.unimodal(joint[y, y], RANK), model.v),
        )
        return linear.error(linear.closed_form(joint[x, y], RANK), model), jnp.maximum(*alone)

    over_seeds = jax.vmap(one, (0, None, None))
    return jax.vmap(jax.vmap(over_seeds, (None, 0, None)), (None, None, 0))(keys, counts, noises)


def recovery(turned: bool, factors: tuple[float, ...] = FACTORS, n: int = SIZE, seeds: int = SEEDS) -> Float[np.ndarray, "2 J K S"]:
    """Errors of MMCL and of the unimodal baseline (of which both sides are taken alone, the larger error): factors, shares, seeds. float64.

    turned: the stronger noise lies along random directions, not along coordinates.
    """
    noise = np.where(np.arange(FEATURES)[None] < NOISY, NOISE * np.asarray(factors)[:, None], NOISE)
    true = np.round(n * np.asarray(SHARES)).astype(int)
    with jax.enable_x64():
        keys = jax.random.split(jax.random.key(0), seeds)
        return np.stack(_recovery(keys, jnp.asarray(np.stack([true, n - true], 1)), jnp.asarray(noise), turned))


def run(tick: Tick) -> Result:
    rows = []
    for noise, turned in (("coordinates", False), ("directions", True)):
        pair, alone = recovery(turned).mean(3)
        for j, factor in enumerate(FACTORS):
            curves = {"MMCL": pair[j, 0], "MMCL, 30 % wrong pairs": pair[j, 1], "one modality": alone[j, 0]}
            rows += [{"noise_along": noise, "factor": factor, "method": name, "error": float(e)} for name, e in curves.items()]
        tick(0.5)
    table = pd.DataFrame(rows)
    judged = table[(table.noise_along == "directions") & (table.factor == JUDGED)].set_index("method").error
    along = table[(table.noise_along == "coordinates") & (table.factor == JUDGED)].set_index("method").error
    metrics = {
        "mmcl_error": float(judged["MMCL"]),
        "mmcl_error_wrong_pairs": float(judged["MMCL, 30 % wrong pairs"]),
        "unimodal_error": float(judged["one modality"]),
        "unimodal_error_noise_along_coordinates": float(along["one modality"]),
    }
    verdict = (
        f"noise along directions: MMCL {metrics['mmcl_error']:.2f}, with 30 % wrong pairs {metrics['mmcl_error_wrong_pairs']:.2f}, "
        f"one modality {metrics['unimodal_error']:.2f}; along coordinates masking removes it: {along['one modality']:.2f}"
    )
    return Result(table, metrics, verdict)


def draw(result: Result, figure: Any) -> None:
    for axes, (noise, part) in zip(figure.subplots(1, 2, sharey=True), result.table.groupby("noise_along"), strict=True):
        for method, line in part.groupby("method", sort=False):
            axes.plot(line.factor, line.error, "o-", label=method)
        axes.axhline(np.sqrt(RANK), color="k", linestyle=":", linewidth=1, label="nothing found")
        axes.set(xlabel="stronger noise / weaker noise", yscale="log", title=f"stronger along {noise}")
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("error (sin-Theta)")
    figure.axes[0].legend(fontsize=8)


EXPERIMENTS = (
    Experiment("recovery", "MMCL: finds the features where contrastive learning in one modality fails, also with wrong pairs", run, draw),
)
