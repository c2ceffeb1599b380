"""The errors of linear MMCL over seeds, clean shares and spectra: ours, which draws moments, beside numpy, which makes the rows.

    python -m benchmarks.theory --rounds=3

Both give the same statistics, float64: for n pairs, `--seeds` seeds, five clean shares and two spectra, the sin-Theta error of the SVD
of the centred cross-covariance. numpy's side is vectorised over shares and spectra, draws each seed's normals once for all of
them, and takes one seed at a time, which is faster than all at once (the arrays stay in the cache). They take turns in one process.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from bacl_jax.theory import rates

ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each side.", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 10, "Seeds.", lower_bound=1)
SIZES = (2_000, 20_000, 100_000)


def of_seed(random: np.random.Generator, n: int, shares: np.ndarray, spectra: np.ndarray, f: int, g: int) -> np.ndarray:
    """Errors of one seed from rows: spectra, shares."""
    r = spectra.shape[1]
    u, v = (np.linalg.qr(random.standard_normal((size, r)))[0] for size in (f, g))
    z, other, xi, xi_y = (random.standard_normal((n, size)) for size in (r, r, f, g))
    clean = random.random(n) < shares[:, None]
    x = (z * spectra[:, None]) @ u.T + xi  # spectra, n, F
    partner = np.where(clean[:, :, None], z, other)  # shares, n, r
    y = (partner * spectra[:, None, None]) @ v.T + xi_y  # spectra, shares, n, G
    x -= x.mean(1, keepdims=True)
    s = x.transpose(0, 2, 1)[:, None] @ y / (n - 1)
    left, _, right = np.linalg.svd(s, full_matrices=False)
    sides = ((left[..., :r], u), (right[..., :r, :].swapaxes(-1, -2), v))
    return np.maximum(*(np.linalg.norm(true - found @ (found.swapaxes(-1, -2) @ true), axis=(-2, -1)) for found, true in sides))


def reference(n: int, seeds: int) -> np.ndarray:
    """As rates.errors, from rows: spectra, shares, seeds."""
    randoms = [np.random.default_rng((n, seed)) for seed in range(seeds)]
    shares, spectra = np.asarray(rates.SHARES), np.asarray(rates.SPECTRA)
    return np.stack([of_seed(random, n, shares, spectra, rates.F, rates.G) for random in randoms], -1)


def ours(n: int, seeds: int) -> np.ndarray:
    return rates.errors(n, rates.SHARES, np.asarray(rates.SPECTRA), seeds)


def seconds(function: Callable[[int, int], np.ndarray], n: int, seeds: int) -> tuple[float, np.ndarray]:
    """Time of one call and its errors."""
    start = time.perf_counter()
    found = function(n, seeds)
    return time.perf_counter() - start, found


def main(argv: list[str]) -> None:
    compilation = seconds(ours, SIZES[0], SEEDS.value)[0]
    table = Table("n", "ours ms", "numpy ms", "numpy / ours", "mean error, ours", "numpy", title="medians over the turns")
    totals = np.zeros(2)
    for n in SIZES:
        times: tuple[list[float], list[float]] = ([], [])
        means = [0.0, 0.0]
        for _ in range(ROUNDS.value):
            for i, side in enumerate((ours, reference)):
                taken, found = seconds(side, n, SEEDS.value)
                times[i].append(taken)
                means[i] = found.mean()
        medians = np.asarray([statistics.median(one) for one in times])
        totals += medians
        table.add_row(
            f"{n:,}", *(f"{1e3 * one:.1f}" for one in medians), f"{medians[1] / medians[0]:.1f}", *(f"{one:.4f}" for one in means)
        )
    Console().print(table)
    ratios = totals[1] / totals[0], totals[1] / (totals[0] + compilation)
    print(f"all n: numpy / ours {ratios[0]:.1f}; with the one compilation of ours ({compilation:.1f} s) {ratios[1]:.2f}")


if __name__ == "__main__":
    app.run(main)
