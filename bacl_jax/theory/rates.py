"""How the error of linear MMCL falls with pairs and rises with wrong ones (arXiv 2302.06232), also after a teacher's filter."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Key

from bacl_jax.theory import linear, spiked
from bacl_jax.theory.drawing import logarithmic, reference, slope, wrong_pairs
from bacl_jax.theory.experiment import Experiment, Result, Tick

F, G = 10, 8
SPECTRA = ((1.0, 1.0, 1.0, 1.0), (1.2, 1.1, 0.9, 0.8))  # standard deviations of the signal; those of the noise are 1
SIZES = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
SHARES = (1.0, 0.7, 0.5, 0.35, 0.25)
SEEDS = 60
FILTER_NOISE, FILTER_SIZE, FILTER_SEEDS = 0.3, 8_000, 12
FILTER_RANKS = (2, 4)  # the metric is of the first


@partial(jax.jit, static_argnames="features")
def _errors(keys: Array, counts: Array, spectra: Array, features: tuple[int, int]) -> Array:
    def one(key: Array, count: Array, signal: Array) -> Array:
        of_model, of_data = jax.random.split(key)
        model = spiked.draw(of_model, signal, *(jnp.ones(size, signal.dtype) for size in features))
        joint = spiked.covariance(of_data, model, count)
        return linear.error(linear.closed_form(joint[: features[0], features[0] :], len(signal)), model)

    over_seeds = jax.vmap(one, (0, 0, None))
    over_shares = jax.vmap(over_seeds, (None, 0, None))
    return jax.vmap(over_shares, (None, None, 0))(keys, counts, spectra)


def errors(
    n: int, shares: tuple[float, ...], spectra: Float[np.ndarray, "J r"], seeds: int, features: tuple[int, int] = (F, G)
) -> Float[np.ndarray, "J K S"]:
    """Errors of the closed form from n pairs: spectra, clean shares, seeds. One compiled call, and one compilation for all n. float64.

    The seeds' models and draws are the same for all shares and spectra, but for the number of true pairs, which is binomial.
    """
    true = np.random.default_rng(n).binomial(n, np.asarray(shares)[:, None], (len(shares), seeds))
    with jax.enable_x64():
        keys = jax.random.split(jax.random.key(n), seeds)
        return np.asarray(_errors(keys, jnp.asarray(np.stack([true, n - true], -1)), jnp.asarray(spectra), features))


@partial(jax.jit, static_argnames=("n", "rank"))
def _filtered(keys: Key[Array, " S"], shares: Float[Array, " K"], n: int, rank: int) -> tuple[Array, Array]:
    def one(key: Array, share: Array) -> tuple[Array, Array]:
        of_model, of_data = jax.random.split(key)
        model = spiked.draw(of_model, jnp.ones(rank), FILTER_NOISE * jnp.ones(F), FILTER_NOISE * jnp.ones(G))
        pairs = spiked.rows(of_data, model, n, share)
        first = linear.closed_form(linear.cross_covariance(pairs.x, pairs.y, jnp.ones(n)), rank)
        kept = linear.keep_positive(pairs, first).astype(pairs.x.dtype)
        second = linear.closed_form(linear.cross_covariance(pairs.x, pairs.y, kept), rank)
        return linear.error(first, model), linear.error(second, model)

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, shares)


def filtered(rank: int, n: int = FILTER_SIZE, shares: tuple[float, ...] = SHARES, seeds: int = FILTER_SEEDS) -> Float[np.ndarray, "2 S K"]:
    """Errors before and after the filter by a teacher: seeds, clean shares. float64, rows as they are."""
    with jax.enable_x64():
        return np.stack(_filtered(jax.random.split(jax.random.key(0), seeds), jnp.asarray(shares), n, rank))


def predicted(rank: int, shares: tuple[float, ...] = SHARES) -> Float[np.ndarray, " K"]:
    """The filtered error over that of true pairs alone if the teacher knows the features: sqrt((1 + p) / 2) / (p + (1 - p) c / 2).

    All true pairs are kept and half of the wrong ones. Their scores have the mean c r, c = E|<z, z'>| / r, so that they pull, too.
    """
    draws = np.random.default_rng(0).normal(size=(2, 200_000, rank))
    c, p = np.abs((draws[0] * draws[1]).sum(1)).mean() / rank, np.asarray(shares)
    return np.sqrt((1 + p) / 2) / (p + (1 - p) * c / 2)


def against_n(tick: Tick) -> Result:
    rows: list[dict[str, Any]] = []
    for n in SIZES:
        found = errors(n, SHARES, np.asarray(SPECTRA), SEEDS).mean(2)
        for (j, k), value in np.ndenumerate(found):
            rows.append({"n": n, "clean_share": SHARES[k], "spectrum": j, "error": value})
        tick(1 / len(SIZES))
    table = pd.DataFrame(rows)
    slopes = [slope(part.n, part.error) for _, part in table.groupby(["spectrum", "clean_share"])]
    verdict = f"slope {np.mean(slopes):.3f} on average, {min(slopes):.3f} to {max(slopes):.3f} over shares and spectra"
    return Result(table, {"slope_error_vs_n": float(np.mean(slopes))}, verdict)


def draw_against_n(result: Result, figure: Any) -> None:
    axes = figure.subplots()
    part = result.table[result.table.spectrum == 0]
    for share, line in part.groupby("clean_share"):
        axes.plot(line.n, line.error, "o-", label=f"clean share {share:g}")
    reference(axes, np.asarray(SIZES), float(np.asarray(part[part.clean_share == 1]["error"])[0]) * 0.8, -0.5)
    logarithmic(axes, "pairs n", "error (sin-Theta)")
    axes.legend(fontsize=8)


def against_share(tick: Tick) -> Result:
    inverse = 1 / np.asarray(SHARES)
    plain = errors(SIZES[-1], SHARES, np.asarray(SPECTRA), SEEDS).mean(2)
    tick(0.3)
    curves = {"equal spectrum": plain[0], "falling spectrum": plain[1]}
    for rank in FILTER_RANKS:
        before, after = filtered(rank).mean(1)
        curves |= {f"r = {rank}, first fit": before, f"r = {rank}, filtered": after, f"r = {rank}, predicted": before[0] * predicted(rank)}
        tick(0.7 / len(FILTER_RANKS))
    table = pd.DataFrame(
        [{"curve": name, "clean_share": p, "error": e} for name, curve in curves.items() for p, e in zip(SHARES, curve, strict=True)]
    )
    slopes = {name: slope(inverse, curve) for name, curve in curves.items()}
    metrics = {
        "slope_error_vs_clean_share": (slopes["equal spectrum"] + slopes["falling spectrum"]) / 2,
        "slope_error_vs_clean_share_filtered": slopes[f"r = {FILTER_RANKS[0]}, filtered"],
    }
    return Result(table, metrics, "slopes: " + ", ".join(f"{name} {value:.2f}" for name, value in slopes.items()))


def draw_against_share(result: Result, figure: Any) -> None:
    plain, teacher = figure.subplots(1, 2)
    for name, line in result.table.groupby("curve", sort=False):
        style = ":" if str(name).endswith("predicted") else "o-"
        (plain if str(name).endswith("spectrum") else teacher).plot(1 / line.clean_share, line.error, style, label=name)
    for axes, title in ((plain, f"closed form, n = {SIZES[-1]:,}"), (teacher, f"filter by a teacher, n = {FILTER_SIZE:,}")):
        reference(axes, 1 / np.asarray(SHARES), axes.lines[0].get_ydata()[0] * 1.3, 1)
        logarithmic(axes, "1 / clean share", "error (sin-Theta)", title)
        wrong_pairs(axes, SHARES)
        axes.legend(fontsize=7)


EXPERIMENTS = (
    Experiment("error_vs_n", "MMCL: the error falls as n^-1/2", against_n, draw_against_n),
    Experiment(
        "error_vs_clean_share",
        "MMCL: the error rises as 1 / clean share; a filter by a teacher lowers the slope",
        against_share,
        draw_against_share,
    ),
)
