"""All experiments by name, and what is written of each: a picture, a table, and a line of theory.json."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from bacl_jax.theory import bacl_index, bacl_margin, descent, partners, rates, recovery
from bacl_jax.theory.experiment import Experiment, Result

SIZE, DPI = (8.0, 3.8), 90  # inches
MODULES = (rates, recovery, descent, partners, bacl_index, bacl_margin)  # each with a tuple EXPERIMENTS
EXPERIMENTS: dict[str, Experiment] = {one.name: one for module in MODULES for one in module.EXPERIMENTS}


def replace(path: Path, write: Callable[[Path], object]) -> Path:
    """A file that is there whole, or as it was before."""
    part = path.with_name(f".{os.getpid()}-{path.name}")
    write(part)
    return part.replace(path)


def sweep(out: Path) -> None:
    """Removes the parts of files that processes of this machine which are no more have left."""
    for path in out.glob(".*"):
        if (part := re.fullmatch(r"\.(\d{1,9})-\w+\.(png|csv|json)", path.name)) and not _alive(int(part[1])):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def make(names: Sequence[str], out: Path) -> tuple[dict[str, Result], list[Path]]:
    """Runs the experiments one by one: (results by name, files). What one has found is written before the next begins."""
    results: dict[str, Result] = {}
    paths: list[Path] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("", total=len(names))
        for name in names:
            experiment = EXPERIMENTS[name]
            progress.update(bar, description=name)
            results[name] = experiment.run(lambda share: progress.advance(bar, share))
            paths += save(experiment, results[name], out)
            save_metrics(results[name].metrics, out)
    return results, [*paths, out / "theory.json"]


def save(experiment: Experiment, result: Result, out: Path) -> list[Path]:
    """NAME.png and NAME.csv."""
    figure = Figure(SIZE, layout="constrained")
    experiment.draw(result, figure)
    picture = replace(out / f"{experiment.name}.png", lambda path: figure.savefig(path, dpi=DPI))
    return [picture, replace(out / f"{experiment.name}.csv", lambda path: result.table.to_csv(path, index=False, float_format="%.6g"))]


def save_metrics(metrics: Mapping[str, float], out: Path) -> Path:
    """theory.json: these metrics, and of those that it had before the ones of other names. ValueError where it is no JSON object."""
    target = out / "theory.json"
    before = json.loads(target.read_text()) if target.exists() else {}
    if not isinstance(before, dict):
        raise ValueError(f"{target} holds no JSON object")
    merged = before | {name: float(value) for name, value in metrics.items()}
    return replace(target, lambda path: path.write_text(json.dumps(merged, indent=1) + "\n"))


def summary(results: Mapping[str, Result]) -> Table:
    """Claims beside what was found."""
    table = Table("claim", "found", "verdict", show_lines=True)
    for name, result in results.items():
        found = "\n".join(f"{key} {value:.4g}" for key, value in result.metrics.items())
        table.add_row(escape(EXPERIMENTS[name].claim), escape(found), escape(result.verdict))
    return table
