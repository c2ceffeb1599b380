"""Results of several checkpoints beside each other: a table and a picture of the numbers that a task is read by."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bacl_jax.eval.pictures import save

HEADLINES = {
    "retrieval": ("i2t_R@1", "i2t_R@1_all", "t2i_R@1", "a2t_R@1", "t2a_R@1", "v2t_R@1", "t2v_R@1", "f2t_R@1"),
    "halftrue": ("halftrue_pairwise", "halftrue_beat_all"),
    "localization": ("ael",),
}
Results = Mapping[int, Mapping[str, Mapping[str, float]]]  # step -> task -> metric -> number


def headlines(task: str, metrics: Mapping[str, float]) -> list[str]:
    """The metrics that a task is read by: those of HEADLINES, else the whole-benchmark ones that have a chance beside them."""
    names = HEADLINES.get(task, [name.removesuffix("_chance") for name in metrics if name.endswith("_chance") and "/" not in name])
    return [name for name in names if name in metrics]


def series(results: Results) -> dict[str, dict[str, dict[int, float]]]:
    """task -> headline metric -> step -> number, as far as there are any."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for step, task, name, value in _numbers(results):
        found.setdefault(task, {}).setdefault(name, {})[step] = value
    return found


def _numbers(results: Results) -> Iterator[tuple[int, str, str, float]]:
    for step in sorted(results):
        for task, metrics in results[step].items():
            for name in headlines(task, metrics):
                yield step, task, name, metrics[name]


def table(results: Results) -> Table:
    """A row for each step, ascending; a column for each headline metric."""
    columns = [(name, values) for lines in series(results).values() for name, values in lines.items()]
    title = f"{len(results)} checkpoints (percent)"
    out = Table(title=title, title_justify="left", min_width=len(title) + 2)
    out.add_column("step", justify="right")
    for name, _ in columns:
        out.add_column(escape(name.removeprefix("halftrue_")), justify="right")
    for step in sorted(results):
        out.add_row(str(step), *(f"{values[step]:.1f}" if step in values else "-" for _, values in columns))
    return out


def print_table(results: Results, console: Console | None = None) -> None:
    """100 columns where the output is no terminal."""
    console = console or Console()
    (console if console.is_terminal else Console(file=console.file, width=100)).print(table(results))


def draw(results: Results, path: str | os.PathLike[str]) -> Path:
    """A panel for each task: its headline metrics over the steps. ValueError where there is nothing to draw."""
    panels = series(results)
    if not panels:
        raise ValueError(f"nothing to draw in {path}: no result has a headline metric")
    figure = Figure(figsize=(4.4 * len(panels), 3.9), layout="constrained")
    for ax, (task, lines) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        for name, values in lines.items():
            ax.plot(list(values), list(values.values()), label=name, marker="o", lw=1.4, ms=3)
        ax.set_title(f"{task} (percent)", loc="left", fontsize=11)
        ax.set_xlabel("step")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return save(figure, path)
