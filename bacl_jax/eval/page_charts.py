"""Line charts as SVG paths: where each point lies, which ticks the axes get. How they look is said in templates/.

Steps are also laid out on a logarithmic axis; a value that is missing or not finite leaves a gap in its line.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT = 360, 220  # of the view box
LEFT, RIGHT, TOP, BOTTOM = 44, 344, 10, 190  # edges of the plotted area
LARGEST = 1e200  # beyond it a number is none: differences of such must be finite
MOST = 400  # points of a line; of more, the smallest and the largest of each stretch are drawn
ROWS = 20  # of a chart's table at most
FEW = 30  # points of a line up to which each is marked
Records = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Line:
    """A name for the legend, and values (None: not there) at steps, ascending."""

    label: str
    steps: tuple[float, ...]
    values: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A line as paths, with steps on a linear and on a logarithmic axis; dots: each point, where they are few. style: 0 and up."""

    label: str
    style: int
    linear: str
    log: str
    dots: bool


@dataclasses.dataclass(frozen=True)
class Chart:
    """All that the template draws, and `data` for whoever reads off values: of each line its steps, values and heights in the view box.

    latest: the last step in words. band: paths round the area between the first line and the second, linear and logarithmic, or "".
    ticks: (place in the view box, text). rows: of the table, a step and the values of all lines.
    """

    key: str
    title: str
    description: str
    lines: tuple[Drawn, ...]
    latest: str
    band: tuple[str, str]
    ticks: dict[str, list[tuple[float, str]]]
    rows: tuple[tuple[str, ...], ...]
    data: dict[str, Any]


def line(records: Records, name: str, label: str) -> Line | None:
    """What the records hold under `name`, or None where they hold no number."""
    found = [(float(record["step"]), finite(record[name])) for record in records if name in record]
    if all(value is None for _, value in found):
        return None
    steps, values = zip(*found, strict=True)
    return Line(label, steps, values)


def finite(value: Any) -> float | None:
    """A number that can be drawn, else None: what is read may hold anything."""
    return float(value) if isinstance(value, int | float) and abs(value) < LARGEST else None


def chart(key: str, title: str, description: str, lines: Sequence[Line | None], *, band: bool = False, log_y: bool = False) -> Chart | None:
    """A chart of those lines that there are, or None without any.

    band: between the first two, if both are there. log_y: where all values are positive.
    """
    there = [_thinned(one) for one in lines if one is not None]
    if not there:
        return None
    steps = [step for one in there for step in one.steps]
    values = [value for one in there for value in one.values if value is not None]
    log_y = log_y and min(values) > 0
    y, y_ticks = _axis(min(values), max(values), BOTTOM, TOP, log=log_y, padded=True)
    axes = {"linear": _axis(min(steps), max(steps), LEFT, RIGHT), "log": _axis(max(1, min(steps)), max(steps), LEFT, RIGHT, log=True)}
    xs = {name: place for name, (place, _) in axes.items()}
    drawn = tuple(
        Drawn(one.label, style, _path(one, xs["linear"], y), _path(one, xs["log"], y), len(one.steps) < FEW)
        for style, one in enumerate(there)
    )
    heights = [[None if value is None else round(y(value), 1) for value in one.values] for one in there]
    return Chart(
        key=key,
        title=title,
        description=description,
        lines=drawn,
        latest=_latest(there),
        band=(_band(there, xs["linear"], y), _band(there, xs["log"], y)) if band and None not in lines[:2] else ("", ""),
        ticks={"y": y_ticks} | {name: ticks for name, (_, ticks) in axes.items()},
        rows=_rows(there),
        data={
            "x": {name: [[step, round(place(step), 1)] for step in sorted(set(steps))] for name, place in xs.items()},
            "lines": [
                {"label": one.label, "steps": one.steps, "texts": [number(v) for v in one.values], "y": high}
                for one, high in zip(there, heights, strict=True)
            ],
        },
    )


def number(value: float | None) -> str:
    """Four digits, or a dash for what is not there."""
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _axis(
    low: float, high: float, start: float, end: float, *, log: bool = False, padded: bool = False
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """A function from value to place, and the ticks that lie between the ends."""
    scale = (lambda value: math.log10(max(value, 1e-30))) if log else float
    first, last = scale(low), scale(high)
    if last - first < 1e-12 * max(1.0, abs(first)):
        first, last = first - 0.5, last + 0.5
    if padded:
        first, last = first - 0.04 * (last - first), last + 0.04 * (last - first)

    def place(value: float) -> float:
        return start + (scale(value) - first) / (last - first) * (end - start)

    if log:
        marks = LogLocator(subs=(1.0,) if last - first > 1.5 else (1.0, 2.0, 5.0), numticks=6).tick_values(10**first, 10**last)
    else:
        marks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(first, last)
    inside = [float(mark) for mark in marks if first - 1e-9 <= scale(float(mark)) <= last + 1e-9]
    return place, [(round(place(mark), 1), f"{mark:g}") for mark in inside]


def _path(one: Line, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """Pieces between gaps; a point by itself becomes a line of no length, which round ends make a dot."""
    parts, open_piece = [], False
    for step, value in zip(one.steps, one.values, strict=True):
        if value is not None:
            parts.append(f"{'L' if open_piece else 'M'}{x(step):.1f},{y(value):.1f}" + ("" if open_piece else "h0"))
        open_piece = value is not None
    return "".join(parts)


def _band(lines: Sequence[Line], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    points = [zip(one.steps, one.values, strict=True) for one in lines[:2]]
    low, high = ([(x(step), y(value)) for step, value in each if value is not None] for each in points)
    return "M" + "L".join(f"{across:.1f},{up:.1f}" for across, up in [*low, *reversed(high)]) + "Z"


def _thinned(one: Line) -> Line:
    if len(one.steps) <= MOST:
        return one
    kept: set[int] = {0, len(one.steps) - 1}
    for stretch in np.array_split(np.arange(len(one.steps)), MOST // 2):
        there = [n for n in stretch.tolist() if one.values[n] is not None] or stretch.tolist()[:1]
        kept |= {min(there, key=lambda n: one.values[n] or 0), max(there, key=lambda n: one.values[n] or 0)}
    rows = sorted(kept)
    return Line(one.label, tuple(one.steps[n] for n in rows), tuple(one.values[n] for n in rows))


def _latest(lines: Sequence[Line]) -> str:
    tables = [{step: value for step, value in zip(one.steps, one.values, strict=True) if value is not None} for one in lines]
    step = max(max(table) for table in tables if table)
    values = [f"{one.label}: {number(table[step])}" for one, table in zip(lines, tables, strict=True) if step in table]
    return f"Step {step:,.0f}. {'; '.join(values)}"


def _rows(lines: Sequence[Line]) -> tuple[tuple[str, ...], ...]:
    steps = sorted({step for one in lines for step, value in zip(one.steps, one.values, strict=True) if value is not None})
    chosen = [steps[n] for n in np.unique(np.linspace(0, len(steps) - 1, min(ROWS, len(steps))).round().astype(int))]
    tables = [dict(zip(one.steps, one.values, strict=True)) for one in lines]
    return tuple((f"{step:,.0f}", *(number(table.get(step)) for table in tables)) for step in chosen)
