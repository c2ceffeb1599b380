"""docs/results.md, made of the kept results alone."""

import re

import pandas as pd

from bacl_jax.eval import study as statistics
from configs.studies import emoji as study

METRICS = ("i2t_R@1", "t2i_R@1", "i2t_R@1_all", "halftrue_pairwise", "halftrue_beat_all")  # of every table
ATTENTION = ("ael", "ael_foreground", "ael_token")
FURTHER = re.compile(r"(i2t|t2i)_(R@|mAP|median)|halftrue_")  # what the main table shows as well
MISSING = "No runs yet: `make compare` makes them.\n"


def render(runs: pd.DataFrame, trials: pd.DataFrame) -> str:
    """The whole page. Differences are paired by seed; ± is the 95 % t interval; * marks those that exclude 0."""
    parts = ["# Results\n", "Made by `make compare` from `docs/results/*.parquet`; do not edit.\n"]
    if runs.empty:
        parts += [MISSING]
    for holdout in study.HOLDOUTS:
        if (runs.holdout == holdout).any():
            parts += [f"## Hold-out: {holdout}\n", main_table(runs, holdout), attention_table(runs, holdout), ablation_table(runs, holdout)]
    if not trials.empty:
        parts += ["## Trials\n", trial_table(trials)]
    return "\n".join(part for part in parts if part)


def metrics_of(runs: pd.DataFrame) -> list[str]:
    return [m for m in METRICS if m in runs]


def all_metrics_of(runs: pd.DataFrame) -> list[str]:
    """Those of every table first."""
    return metrics_of(runs) + [m for m in runs if FURTHER.match(m) and m not in METRICS]


def mean_of(runs: pd.DataFrame, metric: str) -> str:
    return f"{runs[metric].mean():.1f}" if len(runs) else "-"


def main_table(runs: pd.DataFrame, holdout: str) -> str:
    """BACL against InfoNCE: means, and paired differences at equal steps and at equal wall-clock."""
    rows = []
    for metric in all_metrics_of(runs):
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
    note = f"Steps: {', '.join(map(str, steps))}" + (f"; a BACL step takes {cost:.2f} times an InfoNCE step.\n" if cost == cost else ".\n")
    header = ["metric", "InfoNCE", "InfoNCE, equal time", "BACL", "difference, equal steps", "difference, equal time"]
    return note + "\n" + statistics.markdown(rows, header)


def attention_table(runs: pd.DataFrame, holdout: str) -> str:
    """Localisation: BACL against a head trained afterwards on the frozen towers of its pair, an untrained model, and chance."""
    ours = statistics.select(runs, variant=study.METHOD, holdout=holdout, budget="steps")
    theirs = statistics.select(runs, variant=study.BASELINE, holdout=holdout, budget="steps")
    rows = []
    for metric in ATTENTION:
        if metric not in ours or f"{metric}_baseline" not in theirs:
            continue
        difference = statistics.interval((ours[metric] - theirs[f"{metric}_baseline"]).dropna().to_numpy())
        shown = [mean_of(ours, name) if name in ours else "-" for name in (metric, f"{metric}_untrained", f"{metric}_chance")]
        rows.append([metric, shown[0], mean_of(theirs, f"{metric}_baseline"), *shown[1:], f"{difference} (n = {difference.n})"])
    if not rows:
        return ""
    header = ["metric", "BACL", "head on frozen InfoNCE towers", "untrained", "chance", "BACL minus head"]
    return "### Where the attention differs\n\n" + statistics.markdown(rows, header)


def ablation_table(runs: pd.DataFrame, holdout: str) -> str:
    """Every variant against InfoNCE at equal steps, with what a step costs where it was measured."""
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
        rows.append([variant, str(len(chosen)), f"{cost:.2f}" if cost == cost else "-", *map(str, differences)])
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
