"""Pictures of a sweep: each point as a line over the fields that it changes, and what each field does to a metric."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from bacl_jax.eval.pictures import save

PANEL, MOST_COLUMNS = 3.4, 5  # inches a side; panels side by side
LOG_RATIO = 30  # of the largest to the smallest value of a field, all above 0, from which on its axis is logarithmic


Rows = Sequence[Mapping[str, Any]]


def write(rows: Rows, fields: Sequence[str], metrics: Sequence[str], folder: Path) -> list[Path]:
    """DIR/plots/parallel.png by the first metric and DIR/plots/marginal.png by all of them; [] where no point is finished, or none differs.

    Fields that all points share, and metrics that no point has, are left out.
    """
    rows = [row for row in rows if row["status"] == "done"]
    metrics = [metric for metric in metrics if any(row.get(metric) is not None for row in rows)]
    fields = [field for field in fields if len({str(row.get(field)) for row in rows}) > 1]
    if not fields or not metrics:
        return []
    return [
        save(parallel(rows, fields, metrics[0]), folder / "plots" / "parallel.png"),
        save(marginal(rows, fields, metrics), folder / "plots" / "marginal.png"),
    ]


def parallel(rows: Rows, fields: Sequence[str], metric: str) -> Figure:
    """Parallel coordinates: a line for each point, coloured by the metric; each axis goes from its least to its largest value."""
    figure = Figure(figsize=(2.2 * (len(fields) + 1) + 1.5, 4.2), layout="constrained")
    ax = figure.subplots()
    rows = sorted(rows, key=lambda row: row[metric])  # the best is drawn last
    heights = []
    for number, column in enumerate((*fields, metric)):
        positions, ticks = _axis([row.get(column) for row in rows])
        low, extent = positions.min(), np.ptp(positions) or 1.0
        heights.append((positions - low) / extent)
        ax.axvline(number, color="#98a2b3", lw=1)
        for position, text in ticks:
            ax.annotate(text, (number, (position - low) / extent), (4, 0), textcoords="offset points", fontsize=8, va="center")
    colours = mpl.colormaps["viridis"](heights[-1])
    for line, colour in zip(np.stack(heights, 1), colours, strict=True):
        ax.plot(range(len(line)), line, color=colour, lw=1.6, alpha=0.85)
    ax.set_xticks(range(len(fields) + 1), [*map(_short, fields), metric], fontsize=9)
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(f"{len(rows)} points, coloured by {metric} on validation", loc="left", fontsize=11)
    return figure


def marginal(rows: Rows, fields: Sequence[str], metrics: Sequence[str]) -> Figure:
    """A panel for each field and metric: every point, and the mean over the others at each value of the field."""
    panels = [(field, metric) for metric in metrics for field in fields]
    columns = min(max(len(fields), 1), MOST_COLUMNS)
    figure = Figure(figsize=(PANEL * columns, PANEL * -(-len(panels) // columns)), layout="constrained")
    axes = list(figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat)
    for ax, (field, metric) in zip(axes, panels, strict=False):
        known = [row for row in rows if row.get(metric) is not None]
        positions, ticks = _axis([row.get(field) for row in known])
        values = np.array([row[metric] for row in known], float)
        places = np.unique(positions)
        ax.scatter(positions, values, s=14, color="#98a2b3")
        ax.plot(places, [values[positions == place].mean() for place in places], "o-", color="#1d4ed8", lw=1.6, ms=4)
        ax.set_xticks(*zip(*ticks, strict=True), fontsize=8, rotation=30 if sum(len(text) for _, text in ticks) > 24 else 0)
        ax.set_xlabel(_short(field), fontsize=9)
        ax.set_ylabel(metric, fontsize=9)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return figure


def _axis(values: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Where the values stand on an axis, and its ticks: numbers at their place, or that of their logarithm; others one beside the other."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = np.array(values, float)
        log = min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_RATIO
        places = np.log10(numbers) if log else numbers
        shown = sorted(set(numbers.tolist()))
        if len(shown) > 6:
            shown = np.quantile(shown, np.linspace(0, 1, 5), method="nearest").tolist()
        return places, [(float(np.log10(value)) if log else value, f"{value:.3g}") for value in shown]
    texts = sorted({str(value) for value in values})
    return np.array([texts.index(str(value)) for value in values], float), [(float(n), text) for n, text in enumerate(texts)]


def _short(field: str) -> str:
    return ".".join(field.split(".")[-2:])
