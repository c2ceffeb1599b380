"""Compares BACL and its parts with InfoNCE on paired seeds, and writes the tables of docs/results.md.

    python -m launch.compare --workdir=runs/compare                  # every run that is not finished, then the report
    python -m launch.compare --workdir=runs/compare --phase=tune     # the trials before, on validation and on seeds of their own
    python -m launch.compare --phase=report                          # docs/results.md again from the kept results

--workdir  folder of the runs; killed at any moment, the same command goes on with what is missing
--results  folder of the kept results: runs.parquet, trials.parquet; the page is written beside it
--workers  runs at a time, each on its share of the cores
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from configs.studies import emoji as study
from launch import command, compare_points, points, results_page

WORKDIR = flags.DEFINE_string("workdir", "runs/compare", "Folder of the runs.")
RESULTS = flags.DEFINE_string("results", "docs/results", "Folder of the kept results.")
PHASE = flags.DEFINE_enum("phase", "run", ["tune", "run", "report"], "What to do.")
WORKERS = flags.DEFINE_integer("workers", 2, "Runs at a time.", lower_bound=1)


def main() -> None:
    kept = Path(RESULTS.value)
    kept.mkdir(parents=True, exist_ok=True)
    if PHASE.value == "tune":
        shared: dict[str, Any] = {}  # the method's trials run on the recipe that is best for the baseline
        for side, search in ((study.BASELINE, study.recipes), (study.METHOD, study.methods)):
            trials = compare_points.trials(side, search, shared)
            run(trials, kept / "trials.parquet")
            best = compare_points.best_trial(compare_points.read(kept / "trials.parquet"), trials)
            print(f"best of {side}: {json.dumps(best)}")
            shared = shared or best
    elif PHASE.value == "run":
        for stage in (compare_points.timing_pairs, compare_points.main_runs, compare_points.vendor, compare_points.ablations):
            run(stage(compare_points.read(kept / "runs.parquet")), kept / "runs.parquet")
    page = kept.with_suffix(".md")
    page.write_text(results_page.render(*(compare_points.read(kept / f"{name}.parquet") for name in ("runs", "trials"))))
    print(page)


def run(chosen: list[points.Point], path: Path) -> None:
    compare_points.run(chosen, Path(WORKDIR.value), path, workers=WORKERS.value)


if __name__ == "__main__":
    command.run(main, __doc__)
