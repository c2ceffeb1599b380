"""What wrong pairs cost InfoNCE, BACL and two robust forms of MMCL's loss: retrieval against the share of training pairs that are wrong.

    python -m benchmarks.wrong_pairs --phase=tune       # the forms' parameters, on validation and on a seed of their own
    python -m benchmarks.wrong_pairs                    # every run that is not finished, then the report
    python -m benchmarks.wrong_pairs --phase=report     # table and picture again from the kept results

--workdir  folder of the copies of the emoji pairs and of the runs; killed at any moment, the same command goes on with what is missing
--results  kept results, wrong_pairs.parquet and wrong_pairs_trials.parquet; the picture goes there, both into the page beside the folder
--seeds    how many of the study's seeds are run
--workers  runs at a time, each on its share of the cores

Runs are ordered by seed: each variant has one at each share before any has two. The study: configs/studies/wrong_pairs.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags
from matplotlib.figure import Figure

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.eval import study as statistics
from benchmarks import noisy_copy
from configs.studies import wrong_pairs as study
from launch import command, compare_points, points

PAGE = "robustness_to_wrong_pairs.md"
PICTURE = "![i2t R@1, and R@1 among all captions, against the share of wrong pairs](results/wrong_pairs.png)\n"


def point(variant: str, share: int, seed: int, workdir: Path, settings: Mapping[str, Any], *, trial: int | None = None) -> points.Point:
    """One run; a trial is shorter and looks at validation. `settings`: what it changes in the variant's config."""
    steps = study.STEPS if trial is None else study.TUNING_STEPS
    overrides = {
        **study.TOWERS,
        **({"objective.mmcl.form": variant} if "mmcl" in study.CONFIGS[variant] else {}),
        **settings,
        **compare_points.only_at_the_end(seed, steps),
        "data.kind": "manifest",
        "data.path": str(copy_at(workdir, share)),
        "data.split_column": "split",
        "eval.report": "test" if trial is None else "validation",
        "eval.tasks": ("retrieval", "halftrue"),
    }
    budget = "steps" if trial is None else f"trial{trial}"
    labels = dict(zip(compare_points.LABELS, (f"{share} % wrong", variant, budget, seed), strict=True))
    name = f"{variant}-{share}-{budget}-{seed}"
    return points.Point(study.CONFIGS[variant], overrides, {**labels, "share": share, "settings": json.dumps(dict(settings))}, name)


def copy_at(workdir: Path, share: int) -> Path:
    """The manifest of the copy with that share of wrong pairs."""
    return workdir / f"pairs_{share}" / "pairs.csv"


def write_copies(workdir: Path, shares: tuple[int, ...]) -> None:
    """The copies that are not there yet; training captions alone are shuffled."""
    for share in shares:
        if not copy_at(workdir, share).exists():
            rows = noisy_copy.rows(DataConfig(), share=share / 100, copies=0, seed=study.COPY_SEED)
            noisy_copy.write(copy_at(workdir, share).parent, rows, study.COPY_SEED)


def trials(workdir: Path) -> list[points.Point]:
    """The search of each form, on validation."""
    return [
        point(variant, study.TUNING_SHARE, study.TUNING_SEED, workdir, settings, trial=number)
        for variant, tried in study.TRIALS.items()
        for number, settings in enumerate(tried)
    ]


def chosen(finished: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Settings of each variant of the study, by the kept trials. ConfigError where there are none."""
    if finished.empty:
        raise ConfigError("no trials are kept: run --phase=tune first")
    value = finished.assign(value=finished[list(study.OBJECTIVE)].mean(axis=1))
    best = value.sort_values("value").drop_duplicates("variant", keep="last").set_index("variant")
    left_out = min(study.EITHER, key=lambda form: best.value[form])
    return {
        variant: json.loads(best.settings[variant]) if variant in study.TRIALS else {} for variant in study.CONFIGS if variant != left_out
    }


def runs(workdir: Path, settings: Mapping[str, Mapping[str, Any]], seeds: tuple[int, ...]) -> list[points.Point]:
    """Every reported run, seed by seed."""
    return [point(variant, share, seed, workdir, settings[variant]) for seed in seeds for share in study.SHARES for variant in settings]


def by_seed(finished: pd.DataFrame, variant: str, share: int, metric: str) -> pd.Series:
    """The metric of each seed."""
    return pd.Series(statistics.select(finished, variant=variant, holdout=f"{share} % wrong", budget="steps")[metric])


def tables(finished: pd.DataFrame, tried: pd.DataFrame, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Of each metric the means, with the paired difference to InfoNCE behind; then the trials."""
    parts = []
    for metric in study.METRICS:
        rows = []
        for variant in settings:
            cells = []
            for share in study.SHARES:
                values = by_seed(finished, variant, share, metric)
                label = {"holdout": f"{share} % wrong", "budget": "steps", "baseline_budget": "steps"}
                difference = statistics.paired(finished, metric, variant=variant, baseline=study.BASELINE, **label)
                behind = "" if variant == study.BASELINE or not difference.n else f" ({difference})"
                cells.append(f"{values.mean():.1f}{behind}" if len(values) else "-")
            rows.append([variant, *cells])
        parts += [f"`{metric}`\n", statistics.markdown(rows, ["objective", *(f"{share} %" for share in study.SHARES)])]
    counts = finished.groupby(["variant", "holdout"]).seed.nunique()
    parts += [f"Seeds a cell: {counts.min()} to {counts.max()}.\n", "Trials:\n"]
    rows = [[one.variant, one.settings, *(f"{one[metric]:.1f}" for metric in study.OBJECTIVE)] for _, one in tried.iterrows()]
    return "\n".join([*parts, statistics.markdown(rows, ["form", "settings", *study.OBJECTIVE])])


def draw(finished: pd.DataFrame, settings: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The first two metrics against the share of wrong pairs: mean, and each seed as a dot."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), study.METRICS, strict=False):
        for variant in settings:
            values = [by_seed(finished, variant, share, metric) for share in study.SHARES]
            (line,) = axes.plot(study.SHARES, [one.mean() for one in values], marker="o", markersize=4, label=variant)
            for share, one in zip(study.SHARES, values, strict=True):
                axes.scatter([share] * len(one), one, s=8, color=line.get_color(), alpha=0.5)
        axes.set(xlabel="wrong training pairs (percent)", ylabel=f"{metric} (percent)")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130)


def report(kept: Path) -> Path:
    """Writes the picture, and the tables between the marks of the page. ConfigError where no runs, or no trials, are kept."""
    finished, tried = (compare_points.read(kept / f"{name}.parquet") for name in ("wrong_pairs", "wrong_pairs_trials"))
    settings = chosen(tried)
    if finished.empty:
        raise ConfigError("no runs are kept: run --phase=run first")
    draw(finished, settings, kept / "wrong_pairs.png")
    return compare_points.fill(kept.parent / PAGE, "\n".join((PICTURE, tables(finished, tried, settings))))


def main() -> None:
    given = flags.FLAGS
    workdir, kept = Path(given.workdir), Path(given.results)
    kept.mkdir(parents=True, exist_ok=True)
    if given.phase == "tune":
        write_copies(workdir, (study.TUNING_SHARE,))
        compare_points.run(trials(workdir), workdir, kept / "wrong_pairs_trials.parquet", workers=given.workers)
        print(json.dumps(chosen(compare_points.read(kept / "wrong_pairs_trials.parquet"))))
        return
    if given.phase == "run":
        settings = chosen(compare_points.read(kept / "wrong_pairs_trials.parquet"))
        write_copies(workdir, study.SHARES)
        wanted = runs(workdir, settings, study.SEEDS[: given.seeds])
        compare_points.run(wanted, workdir, kept / "wrong_pairs.parquet", workers=given.workers)
    print(report(kept))


if __name__ == "__main__":  # a test imports this module beside others that have flags of these names
    flags.DEFINE_string("workdir", "runs/wrong_pairs", "Folder of the copies and of the runs.")
    flags.DEFINE_string("results", "docs/results", "Folder of the kept results.")
    flags.DEFINE_enum("phase", "run", ["tune", "run", "report"], "What to do.")
    flags.DEFINE_integer("seeds", len(study.SEEDS), "How many seeds.", lower_bound=1, upper_bound=len(study.SEEDS))
    flags.DEFINE_integer("workers", 2, "Runs at a time.", lower_bound=1)
    command.run(main, __doc__)
