"""Every form of MMCL's loss (arXiv 2302.06232): its gradient is a power step of S(beta), and descent ends near the SVD's features."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from bacl_jax.objective import mmcl
from bacl_jax.theory import linear, spiked
from bacl_jax.theory.drawing import logarithmic, wrong_pairs
from bacl_jax.theory.experiment import Experiment, Result, Tick

N, F, G, RANK, NOISE = 200, 10, 8, 3, 0.5
SHARES, SEEDS = (1.0, 0.7, 0.5), 4
STEPS, EVERY, RATE, STRENGTH = 600, 20, 0.5, 1.0
FORMS = {name: make() for name, make in mmcl.FORMS.items()} | {"sigmoid": mmcl.sigmoid(-float(np.log(N)))}  # bias: one positive in N
IDENTITY_SHAPES, IDENTITY_SCALES = ((6, 5, 4, 2), (40, 12, 9, 3)), (0.01, 0.3, 1.0)  # of G1


@partial(jax.jit, static_argnames="name")
def _gradients(g1: Array, g2: Array, x: Array, y: Array, name: str) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    form = FORMS[name]
    taken = jax.grad(linear.regularised)((g1, g2), x, y, form, 0.0)
    s = mmcl.cross_covariance(x, y, mmcl.beta_weights((x @ g1.T) @ (y @ g2.T).T, form))
    return taken, (-g2 @ s.T, -g1 @ s)


def identity_error(name: str) -> float:
    """The largest relative error (Frobenius) of dL/dG1 = -G2 S^T and dL/dG2 = -G1 S over shapes and scales. float64."""
    worst = 0.0
    with jax.enable_x64():
        for seed, (n, f, g, r) in enumerate(IDENTITY_SHAPES):
            normal = np.random.default_rng(seed).normal
            x, y, g1, g2 = (normal(size=shape) for shape in ((n, f), (n, g), (r, f), (r, g)))
            for scale in IDENTITY_SCALES:
                for taken, said in zip(*_gradients(scale * g1, g2, x, y, name), strict=True):
                    worst = max(worst, float(jnp.linalg.norm(taken - said) / jnp.linalg.norm(taken)))
    return worst


@partial(jax.jit, static_argnames=("name", "steps"))
def _curves(keys: Array, shares: Array, name: str, steps: int) -> tuple[Array, Array]:
    def one(key: Array, share: Array) -> tuple[Array, Array]:
        of_model, of_data, of_start = jax.random.split(key, 3)
        model = spiked.draw(of_model, jnp.ones(RANK), jnp.full(F, NOISE), jnp.full(G, NOISE))
        pairs = spiked.rows(of_data, model, N, share)
        svd = linear.closed_form(linear.cross_covariance(pairs.x, pairs.y, jnp.ones(N)), RANK)
        start = linear.initial(of_start, (F, G), RANK)
        fits = linear.descend(start, pairs.x, pairs.y, FORMS[name], strength=STRENGTH, rate=RATE, steps=steps, every=EVERY)[1]
        return jax.vmap(linear.error, (0, None))(fits, model), linear.error(svd, model)

    return jax.vmap(jax.vmap(one, (0, None)), (None, 0))(keys, shares)


def curves(name: str, shares: tuple[float, ...] = SHARES, seeds: int = SEEDS, steps: int = STEPS) -> tuple[Float[np.ndarray, "K S T"], Any]:
    """(errors every EVERY steps of descent by a form: shares, seeds, times; the SVD's errors: shares, seeds). float64."""
    with jax.enable_x64():
        found = _curves(jax.random.split(jax.random.key(0), seeds), jnp.asarray(shares), name, steps)
        return np.asarray(found[0]), np.asarray(found[1])


def identity(tick: Tick) -> Result:
    rows = []
    for name in FORMS:
        rows.append({"form": name, "max_rel_error": identity_error(name)})
        tick(1 / len(FORMS))
    table = pd.DataFrame(rows)
    worst = float(table.max_rel_error.max())
    return Result(table, {"gradient_identity_max_rel_error": worst}, f"largest relative error {worst:.1e} over {len(FORMS)} forms, float64")


def draw_identity(result: Result, figure: Any) -> None:
    axes = figure.subplots()
    axes.barh(result.table.form, result.table.max_rel_error)
    axes.set(xscale="log", xlabel="largest relative error of the identity, float64", xlim=(1e-17, 1e-8))
    axes.axvline(1e-9, color="k", linestyle="--", linewidth=1, label="1e-9")
    axes.legend(fontsize=8)


def run(tick: Tick) -> Result:
    rows: list[dict[str, Any]] = []
    for name in FORMS:
        found, svd = curves(name)
        for (k, t), error in np.ndenumerate(found.mean(1)):
            rows.append({"form": name, "clean_share": SHARES[k], "step": (t + 1) * EVERY, "error": error, "svd_error": svd[k].mean()})
        tick(1 / len(FORMS))
    table = pd.DataFrame(rows)
    last = table[table.step == STEPS]
    ratio = (last.error / last.svd_error).groupby(last.form).max()
    listed = ", ".join(f"{name} {value:.2f}" for name, value in ratio.sort_values().items())
    verdict = f"error after {STEPS} steps as a multiple of the SVD's, the worst of {len(SHARES)} clean shares: {listed}"
    return Result(table, {"descent_error_over_svd": float(ratio.max())}, verdict)


def draw(result: Result, figure: Any) -> None:
    steps, shares = figure.subplots(1, 2, sharey=True)
    table = result.table
    for name, part in table.groupby("form", sort=False):
        clean, last = part[part.clean_share == 1], part[part.step == STEPS]
        steps.plot(clean.step, clean.error, label=name)
        shares.plot(1 / last.clean_share, last.error, "o-", label=name)
    svd = table[(table.step == STEPS) & (table.form == "linear")]
    steps.axhline(svd.svd_error.iloc[0], color="k", linestyle="--", linewidth=1, label="SVD")
    shares.plot(1 / svd.clean_share, svd.svd_error, "k--", linewidth=1, label="SVD")
    logarithmic(steps, "step of gradient descent", "error (sin-Theta)", "true pairs alone")
    logarithmic(shares, "1 / clean share", "", f"after {STEPS} steps")
    steps.set_xscale("linear")
    wrong_pairs(shares, SHARES)
    shares.legend(fontsize=7)


EXPERIMENTS = (
    Experiment("gradient_identity", "MMCL: a gradient step is a power step of S(beta), for every form", identity, draw_identity),
    Experiment("descent", "MMCL: descent by any form ends near the features of the SVD", run, draw),
)
