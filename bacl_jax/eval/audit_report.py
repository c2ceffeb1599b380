"""What an audit leaves behind: CSV files, contact sheets of their first rows, and tables for the terminal."""

import dataclasses
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jaxtyping import UInt8
from matplotlib.figure import Figure
from numpy import ndarray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bacl_jax.data import transforms
from bacl_jax.data.source import Source
from bacl_jax.eval.audit import Findings
from bacl_jax.eval.pictures import MUTED, RIGHT, SHOWN_PIXELS, WRONG, picture, save

LISTS = ("pairs", "duplicates", "false_negatives", "unreadable")
TEXT = "#101828"
WIDTH, SMALL_WIDTH, LINES = 34, 46, 2  # letters of a line; lines of a caption
COLUMNS = 3  # entries side by side
PRINTED = 8  # rows of a table in the terminal


@dataclasses.dataclass(frozen=True)
class Entry:
    """One place of a contact sheet: one or two pictures, and lines of text in their colours."""

    images: Sequence[UInt8[ndarray, "h w 3"]]
    lines: Sequence[tuple[str, str]]


def write(folder: str | os.PathLike[str], findings: Findings) -> list[Path]:
    """`folder`/<list>.csv of every list, with a header also where it is empty. A file that is there is replaced."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in LISTS:
        table: pd.DataFrame = getattr(findings, name)
        paths.append(folder / f"{name}.csv")
        table.to_csv(paths[-1], index_label="place", float_format="%.6f", lineterminator="\n")
    return paths


def draw(folder: str | os.PathLike[str], findings: Findings, source: Source, shown: int) -> list[Path]:
    """A contact sheet `folder`/<list>.png of the first `shown` rows of each list that has any."""

    def image(row: int) -> UInt8[ndarray, "h w 3"]:
        return transforms.crop(source[int(row)].image, SHOWN_PIXELS)

    wrong = [
        Entry(
            [image(one.row)],
            [
                (one.caption, WRONG),
                (f"better: {one.better_caption}", RIGHT),
                (f"similarity {one.similarity:.2f}, better {one.similarity + one.boundary_image:.2f}", MUTED),
            ],
        )
        for one in _first(findings.pairs, shown)
    ]
    doubled = [
        Entry(
            [image(one.row), image(one.other_row)],
            [(one.caption, TEXT)]
            + ([] if one.same_caption else [(one.other_caption, WRONG)])
            + [(f"{one.kind}, similarity {one.similarity:.3f}, pixels {one.pixels:.3f}", MUTED)],
        )
        for one in _first(findings.duplicates, shown)
    ]
    unknown = [
        Entry(
            [image(one.row), image(one.other_row)],
            [
                (one.caption, TEXT),
                (f"also: {one.other_caption}", RIGHT),
                (f"captions {one.similarity:.2f}, {one.other_similarity:.2f}; pictures {one.image_similarity:.2f}", MUTED),
            ],
        )
        for one in _first(findings.false_negatives, shown)
    ]
    sheets = {
        "pairs": ("likely wrong pairs: own caption, and one that fits better", wrong),
        "duplicates": ("likely duplicates", doubled),
        "false_negatives": ("likely false negatives: a picture, and another row whose caption fits it, too", unknown),
    }
    return [contact_sheet(entries, title, Path(folder) / f"{name}.png") for name, (title, entries) in sheets.items() if entries]


def contact_sheet(entries: Sequence[Entry], title: str, path: str | os.PathLike[str]) -> Path:
    """Entries in reading order, numbered as in the CSV."""
    rows, columns = -(-len(entries) // COLUMNS), min(COLUMNS, len(entries))
    pictures = max(len(entry.images) for entry in entries)
    height = 1.3 * rows + 0.5
    figure = Figure(figsize=(columns * (1.15 * pictures + 3.1), height))
    widths = (*(1,) * pictures, 2.7) * columns
    grid = figure.add_gridspec(
        rows, len(widths), width_ratios=widths, wspace=0.08, hspace=0.12, left=0.02, right=0.99, bottom=0.01, top=1 - 0.4 / height
    )
    figure.suptitle(title, x=0.02, y=1 - 0.1 / height, ha="left", va="top", fontsize=12, weight="bold")
    for number, entry in enumerate(entries):
        row, column = divmod(number, columns)
        first = column * (pictures + 1)
        for place, image in enumerate(entry.images):
            picture(figure.add_subplot(grid[row, first + place]), image)
        ax = figure.add_subplot(grid[row, first + pictures])
        ax.set_axis_off()
        level = 0.93
        for text, colour in ((f"{number}", MUTED), *entry.lines):
            small = colour == MUTED
            folded = textwrap.wrap(text, SMALL_WIDTH if small else WIDTH, max_lines=LINES, placeholder=" …") or [""]
            ax.text(
                0.02,
                level,
                "\n".join(folded),
                color=colour,
                fontsize=7.5 if small else 9,
                va="top",
                transform=ax.transAxes,
                parse_math=False,
            )
            level -= (0.13 if small else 0.165) * len(folded) + 0.03
    return save(figure, path)


def print_findings(findings: Findings, console: Console | None = None) -> None:
    """The figures, and the first rows of each list; 100 columns where the output is no terminal."""
    console = console or Console()
    console = console if console.is_terminal else Console(file=console.file, width=100)
    for table in tables(findings):
        console.print(table)


def tables(findings: Findings) -> list[Table]:
    """Figures, then a table a list."""
    m = findings.metrics
    figures = _table(f"audit, {m['n']:.0f} pairs of {m['n_images']:.0f} images and {m['n_captions']:.0f} captions", ("", "value"))
    figures.add_row("image and caption are mutual neighbours (percent)", f"{m['mutual']:.1f}")
    figures.add_row("another caption fits the image better (percent)", f"{m['prefers_another_caption']:.1f}")
    figures.add_row("duplicates, exact", f"{m['n_duplicates_exact']:.0f}")
    figures.add_row("duplicates, near", f"{m['n_duplicates_near']:.0f}")
    figures.add_row("false negatives", f"{m['n_false_negatives']:.0f}")
    figures.add_row("rows that cannot be read", f"{m['n_unreadable']:.0f}")
    lists = [figures]
    wrong = _table("likely wrong pairs", ("caption", "score", "row", "a caption that fits better"))
    for one in _first(findings.pairs, PRINTED):
        wrong.add_row(escape(one.caption), f"{one.score:+.2f}", str(one.row), escape(str(one.better_caption)))
    doubled = _table("likely duplicates", ("caption", "kind", "rows", "the other's caption"))
    for one in _first(findings.duplicates, PRINTED):
        doubled.add_row(escape(one.caption), one.kind, f"{one.row}, {one.other_row}", escape(one.other_caption))
    unknown = _table("likely false negatives", ("caption", "margin", "row", "another caption that fits"))
    for one in _first(findings.false_negatives, PRINTED):
        unknown.add_row(escape(one.caption), f"{one.margin:+.2f}", str(one.row), escape(one.other_caption))
    return [*lists, *(table for table in (wrong, doubled, unknown) if table.row_count)]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", min_width=len(title) + 2)
    for number, column in enumerate(columns):
        is_text = number == 0 or number == len(columns) - 1 > 1
        table.add_column(column, justify="left" if is_text else "right")
    return table


def _first(table: pd.DataFrame, count: int) -> list:
    return list(table.head(count).itertuples())
