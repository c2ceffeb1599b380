"""What rows that lack a caption or a picture add to a quarter of the emoji pairs, beside these alone and beside all pairs.

    python -m benchmarks.unpaired                    # every run that is not finished, then the table
    python -m benchmarks.unpaired --phase=report     # the table again from the kept results

--workdir  folder of the copies of the emoji pairs and of the runs; killed at any moment, the same command goes on with what is missing
--results  folder of the kept results, unpaired.parquet; the page docs/unpaired.md beside it gets the table
--workers  runs at a time, each on its share of the cores

The study: configs/studies/unpaired.py.
"""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags

from bacl_jax.config import DataConfig
from bacl_jax.eval import found_pairs
from bacl_jax.eval.study import markdown, paired, select
from bacl_jax.train.workdir import read_config
from benchmarks import unpaired_copy
from configs.studies import unpaired as study
from launch import command, compare_points, point_runs, points

LATE = 0.8  # progress from which on precision and recall of the accepted captions are averaged


def point(variant: str, seed: int, workdir: Path) -> points.Point:
    """One run, evaluated on test when it ends."""
    manifest, changes = study.VARIANTS[study.BASELINE if variant == study.FIRST else variant]
    overrides = {
        **study.TOWERS,
        **changes,
        **compare_points.only_at_the_end(seed, study.STEPS),
        "data.kind": "manifest",
        "data.path": str(workdir / "pairs" / manifest.format(seed=seed)),
        "data.split_column": "split",
        "eval.tasks": ("retrieval",),
    }
    labels = dict(zip(compare_points.LABELS, ("compositional", variant, "steps", seed), strict=True))
    return points.Point(study.CONFIG, overrides, labels, name_of(variant, seed))


def name_of(variant: str, seed: int) -> str:
    """The folder of a run."""
    return f"{variant.replace(' ', '_')}-{seed}"


def find_captions(seed: int, workdir: Path) -> None:
    """Two first runs for this seed, and the manifest with the captions that they find; nothing where that is there."""
    manifest = workdir / "pairs" / study.FOUND.format(seed=seed)
    if not manifest.exists():
        first = [workdir / name_of(study.FIRST, base + seed) for base in study.FIRST_SEEDS]
        data = dataclasses.replace(read_config(first[0]).data, path=str(workdir / "pairs" / "unpaired.csv"), truth_column="truth")
        found = found_pairs.find(first, data, **study.MATCH)
        found_pairs.write(found, data, manifest)
        print(found.summary())


def detection(row: dict[str, Any], workdir: Path) -> dict[str, float]:
    """Of the captions that pictures alone got: precision, recall and share, in percent. While a run trains, means over its last part."""
    variant, seed = row["variant"], row["seed"]
    if variant == study.METHOD:
        pairs = pd.read_csv(workdir / "pairs" / study.FOUND.format(seed=seed))
        found = pairs[pairs.confidence.notna()]
        accepted, precision = study.MATCH["share"], (found.caption == found.truth).mean()
        shares = {"accepted": accepted, "precision": precision, "recall": accepted * precision}
        return {f"unpaired_{name}": 100 * float(value) for name, value in shares.items()}
    lines = [json.loads(line) for line in (workdir / name_of(variant, seed) / "metrics.jsonl").read_text().splitlines()]
    late = [line for line in lines if line["progress"] > LATE]
    values = {name: [line[name] for line in late if line[name] is not None] for name in late[0] if name.startswith("unpaired_")}
    return {name: 100 * statistics.mean(found) for name, found in values.items() if found}


def table(runs: pd.DataFrame) -> str:
    """Means and standard deviations, paired differences to the pairs alone, and the share of the gap to all pairs that is closed."""

    def of(variant: str) -> pd.DataFrame:
        return select(runs, variant=variant, holdout="compositional", budget="steps")

    rows = []
    for metric in study.METRICS:
        low, high = of(study.BASELINE)[metric].mean(), of(study.BOUND)[metric].mean()
        for variant in study.VARIANTS:
            values = of(variant)[metric]
            label = {"holdout": "compositional", "budget": "steps", "baseline_budget": "steps"}
            difference = paired(runs, metric, variant=variant, baseline=study.BASELINE, **label)
            shown = ["-", "-"] if variant == study.BASELINE else [str(difference), f"{100 * (values.mean() - low) / (high - low):.0f} %"]
            rows.append([metric, variant, f"{values.mean():.1f} ± {values.std():.1f}", *shown, str(len(values))])
    parts = [markdown(rows, ["metric", "training rows", "mean ± deviation", "minus pairs alone", "of the gap", "seeds"])]
    for variant in (study.METHOD, study.WHILE_TRAINING):
        found = of(variant)
        if names := [name for name in ("unpaired_accepted", "unpaired_precision", "unpaired_recall") if name in found]:
            told = ", ".join(f"{name.removeprefix('unpaired_')} {found[name].mean():.0f} %" for name in names)
            parts.append(f"{variant.capitalize()}: {told}.\n")
    return "\n".join(parts)


def report(kept: Path) -> Path:
    """Writes the table between the marks of the page."""
    return compare_points.fill(kept.parent / "unpaired.md", table(compare_points.read(kept / "unpaired.parquet")))


def main() -> None:
    workdir, kept = Path(flags.FLAGS.workdir), Path(flags.FLAGS.results)
    kept.mkdir(parents=True, exist_ok=True)
    if flags.FLAGS.phase == "run":
        if not (workdir / "pairs" / "unpaired.csv").exists():
            unpaired_copy.write(workdir / "pairs", DataConfig(), share=study.SHARE, seed=study.COPY_SEED)
        points_of = lambda variant, seeds: [point(variant, seed, workdir) for seed in seeds]  # noqa: E731
        how = {"workers": flags.FLAGS.workers, "more": lambda row: detection(row, workdir)}
        first = points_of(study.FIRST, [base + seed for seed in study.SEEDS for base in study.FIRST_SEEDS])
        point_runs.run(first, workdir, workers=flags.FLAGS.workers, keep=lambda row: None)
        for seed in study.SEEDS:
            find_captions(seed, workdir)
        wanted = [one for variant in study.VARIANTS for one in points_of(variant, study.SEEDS)]
        compare_points.run(wanted, workdir, kept / "unpaired.parquet", **how)
    print(report(kept))


if __name__ == "__main__":  # a test imports this module beside others that have flags of these names
    flags.DEFINE_string("workdir", "runs/unpaired", "Folder of the copies and of the runs.")
    flags.DEFINE_string("results", "docs/results", "Folder of the kept results.")
    flags.DEFINE_enum("phase", "run", ["run", "report"], "What to do.")
    flags.DEFINE_integer("workers", 2, "Runs at a time.", lower_bound=1)
    command.run(main, __doc__)
