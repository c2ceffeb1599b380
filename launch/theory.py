"""The two papers' statements as experiments: pictures, tables, and DIR/theory.json.

    python -m launch.theory --figure=all --out=runs/theory
    python -m launch.theory --figure=error_vs_n,unpaired --out=runs/theory

--figure  names of experiments, separated by commas, or all
--out     folder of NAME.png and NAME.csv of each, and of theory.json; files that are there are replaced

Exit codes: 0 done, 2 bad usage, else a crash.
"""

from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from bacl_jax.config import ConfigError
from bacl_jax.theory import figures
from bacl_jax.theory.experiment import Result
from launch import command

FIGURE = flags.DEFINE_list("figure", ["all"], "Which experiments.")
OUT = flags.DEFINE_string("out", "runs/theory", "Folder of what is written.")


def main() -> None:
    names = list(figures.EXPERIMENTS) if FIGURE.value == ["all"] else list(dict.fromkeys(FIGURE.value))
    for name in names:
        if name not in figures.EXPERIMENTS:
            raise ConfigError(f"--figure={name}: no such experiment; there are all, {', '.join(figures.EXPERIMENTS)}")
    if not names:
        raise ConfigError(f"--figure is empty; there are all, {', '.join(figures.EXPERIMENTS)}")
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Result] = {}
    paths: list[Path] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("", total=len(names))
        for name in names:
            experiment = figures.EXPERIMENTS[name]
            progress.update(bar, description=name)
            results[name] = experiment.run(lambda share: progress.advance(bar, share))
            paths += figures.save(experiment, results[name], out)
    paths.append(figures.save_metrics(results.values(), out))
    console = Console()
    console.print(figures.summary(results))
    for path in paths:
        print(path)


if __name__ == "__main__":
    command.run(main, __doc__)
