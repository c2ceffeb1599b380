"""What a benchmark leaves behind: a table for the terminal, and a list of the entries that were not scored."""

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from bacl_jax.eval.formats import LeftOut


def table(task: str, metrics: Mapping[str, float]) -> Table:
    """A row for every number that has a chance beside it, with what the texts alone score (`blind`) where that is known."""
    title = f"{task}, {metrics['n']:.0f} of {metrics['n_entries']:.0f} entries (percent)"
    out = Table(title=title, title_justify="left", min_width=len(title) + 2)
    for number, column in enumerate(("", "score", "blind", "chance", "entries")):
        out.add_column(column, justify="right" if number else "left")
    for name in metrics:
        if f"{name}_chance" in metrics:
            numbers = [f"{metrics[one]:.1f}" if one in metrics else "-" for one in (name, f"{name}_blind", f"{name}_chance")]
            measure, _, category = name.partition("/")
            label = f"  {category}" if category and not measure.endswith("_macro") else name
            count = metrics.get(f"n/{category}") if category else metrics["n"]
            out.add_row(escape(label.replace("_", " ")), *numbers, "-" if count is None else f"{count:.0f}")
    if not metrics["n"]:
        out.add_row("no entry could be scored", *"----")
    for name, value in metrics.items():
        if name.startswith("left_out/"):
            out.add_row(f"left out: {name.removeprefix('left_out/').replace('_', ' ')}", "-", "-", "-", f"{value:.0f}")
    return out


def not_understood(metrics: Mapping[str, float]) -> str:
    """A line on the share of the texts that the tokenizer does not know or cuts, where there are any; else ""."""
    if not (metrics.get("unknown_tokens") or metrics.get("cut_captions")):
        return ""
    return (
        f"texts: {metrics['unknown_tokens']:.1f} % of their tokens are unknown to the tokenizer, {metrics['cut_captions']:.1f} % are cut\n"
    )


def write_left_out(path: str | os.PathLike[str], left_out: Sequence[LeftOut]) -> Path:
    """A CSV file with a line for every entry that was not scored, and a header also where there is none. An old file is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(LeftOut)])
        writer.writerows(dataclasses.astuple(one) for one in left_out)
    return path
