"""docs/results.md, made of the kept results alone."""

import pandas as pd

from bacl_jax.eval import study as statistics
from configs.studies import emoji as study

METRICS = ("i2t_R@1", "t2i_R@1", "i2t_mAP", "i2t_R@1_all", "halftrue_pairwise", "halftrue_beat_all")
MISSING = "No runs yet: `make compare` makes them.\n"


def render(runs: pd.DataFrame, trials: pd.DataFrame) -> str:
    """The whole page. Differences are paired by seed; ± is the 95 % t interval; * marks those that exclude 0."""
    parts = ["# Results\n", "Made by `make compare` from `docs/results/*.parquet`; do not edit.\n"]
    if runs.empty:
        return "\n".join([*parts, MISSING])
    for holdout in study.HOLDOUTS:
        if (runs.holdout == holdout).any():
            parts += [f"## Hold-out: {holdout}\n", main_table(runs, holdout), ablation_table(runs, holdout)]
    if not trials.empty:
        parts += ["## Trials\n", trial_table(trials)]
    return "\n".join(part for part in parts if part)


def metrics_of(runs: pd.DataFrame) -> list[str]:
    return [m for m in METRICS if m in runs]


def mean_of(runs: pd.DataFrame, metric: str) -> str:
    return f"{runs[metric].mean():.1f}" if len(runs) else "-"


def main_table(runs: pd.DataFrame, holdout: str) -> str:
    """BACL against InfoNCE: means, and paired differences at equal steps and at equal wall-clock."""
    rows = []
    for metric in metrics_of(runs):
        chosen = [
            statistics.select(runs, variant=variant, holdout=holdout, budget=budget)
            for variant, budget in ((study.BASELINE, "steps"), (study.BASELINE, "time"), (study.METHOD, "steps"))
        ]
        differences = [
            statistics.paired(
                runs, metric, variant=study.METHOD, baseline=study.BASELINE, holdout=holdout, budget="steps", baseline_budget=budget
            )
            for budget in ("steps", "time")
        ]
        rows.append([metric, *(mean_of(one, metric) for one in chosen), *(f"{d} (n = {d.n})" for d in differences)])
    cost = statistics.step_cost(runs, variant=study.METHOD, baseline=study.BASELINE, holdout=holdout)
    steps = sorted(runs[runs.holdout == holdout].steps.unique())
    note = f"Steps: {', '.join(map(str, steps))}; a BACL step takes {cost:.2f} times an InfoNCE step.\n"
    header = ["metric", "InfoNCE", "InfoNCE, equal time", "BACL", "difference, equal steps", "difference, equal time"]
    return note + "\n" + statistics.markdown(rows, header)


def ablation_table(runs: pd.DataFrame, holdout: str) -> str:
    """Every variant against InfoNCE at equal steps, with what a step costs."""
    rows = []
    for variant in study.VARIANTS:
        chosen = statistics.select(runs, variant=variant, holdout=holdout, budget="steps")
        if variant == study.BASELINE or chosen.empty:
            continue
        differences = [
            statistics.paired(runs, m, variant=variant, baseline=study.BASELINE, holdout=holdout, budget="steps", baseline_budget="steps")
            for m in metrics_of(runs)
        ]
        cost = statistics.step_cost(runs, variant=variant, baseline=study.BASELINE, holdout=holdout)
        rows.append([variant, str(len(chosen)), f"{cost:.2f}", *map(str, differences)])
    return "### Paired difference to InfoNCE at equal steps\n\n" + statistics.markdown(
        rows, ["variant", "n", "step cost", *metrics_of(runs)]
    )


def trial_table(trials: pd.DataFrame) -> str:
    """Every trial of the search, on validation."""
    shown = metrics_of(trials)
    rows = [
        [*(str(row[c]) for c in ("variant", "budget", "seed", "settings")), *(f"{row[m]:.1f}" for m in shown)]
        for row in trials.to_dict("records")
    ]
    return statistics.markdown(rows, ["side", "trial", "seed", "settings", *shown])
