"""Statistics of a study: paired differences with t intervals, and the tables made of them.

A study is a table with one row a finished run: `variant`, `seed`, `holdout`, `budget`, `steps`, `step_ms`, then the metrics.
Two runs are a pair when they share seed and hold-out: same initial towers, same data order, same held-out captions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Interval:
    """Mean of n paired differences and the half-width of its 95 % t interval (nan for n < 2)."""

    mean: float
    half_width: float
    n: int

    def __str__(self) -> str:
        if self.n == 0:
            return "-"
        if self.n == 1:
            return f"{self.mean:+.1f}"
        sign = " *" if abs(self.mean) > self.half_width else ""
        return f"{self.mean:+.1f} ± {self.half_width:.1f}{sign}"


def interval(differences: Sequence[float] | np.ndarray) -> Interval:
    """95 % interval of the mean of paired differences, Student's t with n - 1 degrees of freedom."""
    d = np.asarray(differences, float)
    if len(d) < 2:
        return Interval(float(d.mean()) if len(d) else float("nan"), float("nan"), len(d))
    return Interval(float(d.mean()), float(stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))), len(d))


def select(runs: pd.DataFrame, *, variant: str, holdout: str, budget: str) -> pd.DataFrame:
    """The runs of one variant, indexed by seed."""
    chosen = runs[(runs.variant == variant) & (runs.holdout == holdout) & (runs.budget == budget)]
    return chosen.set_index("seed").sort_index()


def paired(runs: pd.DataFrame, metric: str, *, variant: str, baseline: str, holdout: str, budget: str, baseline_budget: str) -> Interval:
    """Variant minus baseline over the seeds that both have."""
    ours = select(runs, variant=variant, holdout=holdout, budget=budget)
    theirs = select(runs, variant=baseline, holdout=holdout, budget=baseline_budget)
    if metric not in runs or ours.empty or theirs.empty:
        return Interval(float("nan"), float("nan"), 0)
    return interval((ours[metric] - theirs[metric]).dropna().to_numpy())


def step_cost(runs: pd.DataFrame, *, variant: str, baseline: str, holdout: str) -> float:
    """Median over the pairs of the ratio of their step times; nan without a pair."""
    ours = select(runs, variant=variant, holdout=holdout, budget="steps")
    theirs = select(runs, variant=baseline, holdout=holdout, budget="steps")
    ratios = (ours.step_ms / theirs.step_ms).dropna() if not (ours.empty or theirs.empty) else pd.Series(dtype=float)
    return float(ratios.median()) if len(ratios) else float("nan")


def markdown(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"
