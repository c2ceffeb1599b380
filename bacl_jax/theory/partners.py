"""Unpaired data in curves (arXiv 2302.06232, claim iii): error, precision and recall as rows are added, and where the start is too bad."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
from jaxtyping import Array, Key

from bacl_jax.theory import linear, spiked, unpaired
from bacl_jax.theory.drawing import logarithmic
from bacl_jax.theory.experiment import Experiment, Result, Tick

F, G, RANK, NOISE = 60, 50, 20, 0.4  # the signal's standard deviations are 1
GIVEN, SHARE = 200, 0.7  # pairs, of which 30 % are wrong
SIZES = (500, 2_000, 5_000, 10_000, 20_000)
STARTS, START_SIZE = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0), 2_000  # clean shares of the given pairs
PRECISION = 0.95  # of found pairs; a start with less is too bad


@partial(jax.jit, static_argnames="size")
def measure(key: Key[Array, ""], share: float | Array, size: int) -> dict[str, Array]:
    """Errors of the given pairs alone, after the rounds, and with every partner known; precision and recall of the last round.

    The unpaired rows of the model have a partner each, in an unknown order.
    """
    of_model, of_given, of_rows, of_order = jax.random.split(key, 4)
    model = spiked.draw(of_model, jnp.ones(RANK), jnp.full(F, NOISE), jnp.full(G, NOISE))
    given, rows = spiked.rows(of_given, model, GIVEN, share), spiked.rows(of_rows, model, size)
    order = jax.random.permutation(of_order, size)
    first, rounds = unpaired.refine((given.x, given.y), (rows.x, rows.y[order]), RANK)
    found, last = jax.tree.map(lambda one: one[-1], rounds)
    precision, recall = unpaired.judge(found, jnp.argsort(order).astype(jnp.int32))
    known = linear.cross_covariance(jnp.concatenate([given.x, rows.x]), jnp.concatenate([given.y, rows.y]), jnp.ones(GIVEN + size))
    errors = [linear.error(fit, model) for fit in (first, last, linear.closed_form(known, RANK))]
    return dict(zip(("paired_only", "error", "partners_known", "precision", "recall"), (*errors, precision, recall), strict=True))


def row(size: int, share: float, seed: int = 0) -> dict[str, Any]:
    """A row of the table."""
    with jax.enable_x64():
        return {"N": size, "clean_share": share} | {k: float(v) for k, v in measure(jax.random.key(seed), share, size).items()}


def run(tick: Tick) -> Result:
    rows = []
    for size in SIZES:
        rows.append({"curve": "N"} | row(size, SHARE))
        tick(0.8 * size**2 / sum(one**2 for one in SIZES))
    for share in STARTS:
        rows.append({"curve": "start"} | row(START_SIZE, share))
        tick(0.2 / len(STARTS))
    table = pd.DataFrame(rows)
    last = table[(table.curve == "N") & table.N.eq(SIZES[-1])].iloc[0]
    ratio = last.error / last.paired_only
    failed = table[(table.curve == "start") & (table.precision < PRECISION)].clean_share
    metrics = {"unpaired_precision": last.precision, "unpaired_recall": last.recall, "unpaired_error_over_paired_only": ratio}
    too_bad = f"below {PRECISION:g} where {failed.max():.0%} of the given pairs or fewer are true" if len(failed) else "never too low"
    verdict = (
        f"N = {SIZES[-1]:,}: precision {last.precision:.3f}, recall {last.recall:.3f}, error {last.error:.3f}, "
        f"{ratio:.2f} of paired-only; N = {START_SIZE:,}: precision {too_bad}"
    )
    return Result(table, {name: float(value) for name, value in metrics.items()}, verdict)


def draw(result: Result, figure: Any) -> None:
    sizes, starts = figure.subplots(1, 2)
    part = result.table[result.table.curve == "N"]
    for column, style, label in (
        ("paired_only", "s-", f"{GIVEN} given pairs alone"),
        ("error", "o-", "with unpaired rows"),
        ("partners_known", "k--", "all partners known"),
    ):
        sizes.plot(part.N, part[column], style, label=label)
    logarithmic(sizes, "unpaired rows N of a side", "error (sin-Theta)", f"{SHARE:.0%} of the given pairs true")
    sizes.legend(fontsize=8)
    part = result.table[result.table.curve == "start"]
    for column in ("precision", "recall"):
        starts.plot(part.clean_share, part[column], "o-", label=column)
    starts.plot(part.clean_share, part.error / part.paired_only, "s-", label="error / paired-only")
    starts.set(xlabel="clean share of the given pairs", ylim=(-0.05, 1.15), title=f"N = {START_SIZE:,}")
    starts.grid(alpha=0.3)
    starts.legend(fontsize=8)


EXPERIMENTS = (Experiment("unpaired", "MMCL: unpaired rows find their partners and improve the features", run, draw),)
