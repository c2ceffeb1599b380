"""The two papers' statements as experiments: pictures, tables, and DIR/theory.json.

    python -m launch.theory --figure=all --out=runs/theory
    python -m launch.theory --figure=error_vs_n,unpaired --out=runs/theory

--figure  names of experiments, separated by commas, or all
--out     folder of NAME.png and NAME.csv of each, and of theory.json; files that are there are replaced, theory.json keeps the
          numbers of other experiments

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


def opened(folder: str) -> Path:
    """The folder, made where there is none; it has a theory.json from now on. ConfigError where that cannot be."""
    out = Path(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        figures.sweep(out)
        figures.save_metrics({}, out)
    except OSError as error:
        raise ConfigError(f"--out={folder}: {error.strerror or error}; name a folder that can be written to") from error
    except ValueError as error:
        raise ConfigError(f"--out={folder}: theory.json there cannot be read ({error}); remove it or name another folder") from error
    return out


def main() -> None:
    names = list(figures.EXPERIMENTS) if "all" in FIGURE.value else list(dict.fromkeys(FIGURE.value))
    for name in FIGURE.value:
        if name not in ("all", *figures.EXPERIMENTS):
            raise ConfigError(f"--figure={name}: no such experiment; there are all, {', '.join(figures.EXPERIMENTS)}")
    if not names:
        raise ConfigError(f"--figure is empty; there are all, {', '.join(figures.EXPERIMENTS)}")
    out = opened(OUT.value)
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
            figures.save_metrics(results[name].metrics, out)
    paths.append(out / "theory.json")
    console = Console()
    console.print(figures.summary(results))
    for path in paths:
        print(path)


if __name__ == "__main__":
    command.run(main, __doc__)
