"""The two papers' statements as experiments: pictures, tables, and DIR/theory.json.

    python -m launch.theory --figure=all --out=runs/theory
    python -m launch.theory --figure=error_vs_n,unpaired --out=runs/theory

--figure  names of experiments, separated by commas, or all
--out     folder of NAME.png and NAME.csv of each, and of theory.json; files that are there are replaced, theory.json keeps the
          numbers of other experiments

Exit codes: 0 done, 2 bad usage, else a crash.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from bacl_jax.config import ConfigError
from bacl_jax.theory import figures
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


def chosen(names: Sequence[str]) -> list[str]:
    """The experiments of these names, each once; `all` among them is all. ConfigError where there is none or one is unknown."""
    for name in names:
        if name not in ("all", *figures.EXPERIMENTS):
            raise ConfigError(f"--figure={name}: no such experiment; there are all, {', '.join(figures.EXPERIMENTS)}")
    if not names:
        raise ConfigError(f"--figure is empty; there are all, {', '.join(figures.EXPERIMENTS)}")
    return list(figures.EXPERIMENTS) if "all" in names else list(dict.fromkeys(names))


def main() -> None:
    results, paths = figures.make(chosen(FIGURE.value), opened(OUT.value))
    Console().print(figures.summary(results))
    for path in paths:
        print(path)


if __name__ == "__main__":
    command.run(main, __doc__)
