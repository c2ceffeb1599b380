"""Which runs the comparison consists of, in the order in which they are worth having, and the tables in which their results are kept."""

import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bacl_jax.eval.study import step_cost
from configs.studies import emoji as study
from launch import point_runs
from launch.points import Point, comes_from, config_of

LABELS = ["holdout", "variant", "budget", "seed"]
MARKS = "<!-- figures -->\n", "<!-- /figures -->\n"  # around what `fill` writes


def only_at_the_end(seed: int, steps: int) -> dict[str, Any]:
    """What every run of a study sets: only its last step is evaluated and saved."""
    return {
        "seed": seed,
        "train.steps": steps,
        "train.eval_every": 0,
        "train.keep_best": None,
        "train.save_every": steps,
        "eval.plots": False,
    }


def point(
    variant: str,
    seed: int,
    *,
    holdout: str = "compositional",
    budget: str = "steps",
    steps: int,
    split: str = "test",
    localised: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> Point:
    """One run: only its last step is evaluated and saved."""
    config, changes = study.VARIANTS[variant]
    overrides = {
        **changes,
        **study.HOLDOUTS[holdout],
        **(extra or {}),
        **only_at_the_end(seed, steps),
        "eval.report": split,
        "eval.tasks": ("retrieval", "halftrue", "localization")[: 3 if localised else 2],
    }
    labels = dict(zip(LABELS, (holdout, variant, budget, seed), strict=True))
    return Point(config, overrides, {**labels, "settings": json.dumps(dict(extra or {}))}, "-".join(map(str, labels.values())))


def read(path: Path) -> pd.DataFrame:
    """The kept table; an empty one where there is none yet."""
    return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=[*LABELS, "steps", "step_ms"])


def keep(table: pd.DataFrame, path: Path) -> None:
    """Adds rows to the kept table; a row of the same labels is replaced. A reader sees the old file or the whole new one."""
    both = pd.concat([read(path), table], ignore_index=True)
    both = both.drop_duplicates(LABELS, keep="last").sort_values(LABELS, ignore_index=True)
    both.to_parquet(path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def missing(points: list[Point], kept: pd.DataFrame) -> list[Point]:
    """Those of which no row is kept, or one that came from another config."""
    rows = kept.dropna(subset="config").set_index(LABELS).config.to_dict() if "config" in kept else {}
    return [one for one in points if not comes_from(rows.get(tuple(one.labels[c] for c in LABELS), ""), config_of(one))]


def run(
    wanted: list[Point], workdir: Path, path: Path, *, workers: int, more: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: {}
) -> None:
    """Runs what is missing in the kept table, or is there with another config; each row is kept as soon as it is there.

    more: of a row, further columns.
    """
    missing_ones = missing(wanted, read(path))
    point_runs.run(missing_ones, workdir, workers=workers, keep=lambda row: keep(pd.DataFrame([row | more(row)]), path))


def fill(page: Path, text: str) -> Path:
    """Puts the text between the marks of a page."""
    before, _, rest = page.read_text().partition(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    return page


def trials(side: str, search: Callable[[random.Random], dict[str, Any]], shared: Mapping[str, Any]) -> list[Point]:
    """The search of one side on top of `shared`, on validation; `budget` numbers the trials, `settings` says what they tried."""
    return [
        point(side, seed, budget=f"trial{number}", steps=study.TUNING_STEPS, split="validation", extra={**shared, **trial})
        for number, trial in enumerate(study.trials(search))
        for seed in study.TUNING_SEEDS
    ]


def best_trial(finished: pd.DataFrame, points: list[Point]) -> dict[str, Any]:
    """What the best of these trials had set, by the mean of study.OBJECTIVE."""
    value = finished.assign(value=finished[list(study.OBJECTIVE)].mean(axis=1)).groupby(["variant", "budget"]).value.mean()
    best = max(points, key=lambda p: value.get((p.labels["variant"], p.labels["budget"]), float("-inf")))
    return json.loads(best.labels["settings"])


def longer_steps(finished: pd.DataFrame) -> int:
    """Steps of InfoNCE that take as long as BACL's: ceil(steps x r), r the measured ratio of a step's time; fixed once they were run."""
    known = finished[(finished.budget == "time") & (finished.variant == study.BASELINE)]
    if len(known):
        return int(known.steps.iloc[0])
    ratio = step_cost(finished, variant=study.METHOD, baseline=study.BASELINE, holdout="compositional")
    return math.ceil(study.STEPS * max(ratio, 1.0)) if ratio == ratio else study.STEPS


def pair(seed: int) -> list[Point]:
    """InfoNCE and BACL with one seed."""
    return [point(variant, seed, steps=study.STEPS, localised=True) for variant in (study.BASELINE, study.METHOD)]


def timing_pairs(finished: pd.DataFrame) -> list[Point]:
    """The pairs that say how long a step of either takes."""
    return [one for seed in study.TIMING_SEEDS for one in pair(seed)]


def main_runs(finished: pd.DataFrame) -> list[Point]:
    """Seed by seed InfoNCE, BACL, and InfoNCE with as many steps as BACL's wall-clock buys."""
    longer = longer_steps(finished)
    return [one for seed in study.SEEDS for one in (*pair(seed), point(study.BASELINE, seed, budget="time", steps=longer))]


def ablations(finished: pd.DataFrame) -> list[Point]:
    """Every other variant over the ablation's seeds."""
    others = [name for name in study.VARIANTS if name not in (study.BASELINE, study.METHOD)]
    return [point(variant, seed, steps=study.STEPS) for seed in study.ABLATION_SEEDS for variant in others]


def vendor(finished: pd.DataFrame) -> list[Point]:
    """The held-out vendor: InfoNCE at equal steps and at equal wall-clock, and BACL."""
    longer = longer_steps(finished)
    runs = ((study.BASELINE, "steps", study.STEPS), (study.METHOD, "steps", study.STEPS), (study.BASELINE, "time", longer))
    return [
        point(variant, seed, holdout="vendor", budget=budget, steps=steps)
        for seed in study.ABLATION_SEEDS
        for variant, budget, steps in runs
    ]
