"""What the pictures of the theory share: slopes on logarithmic axes and lines to compare them with."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def slope(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Least squares of log y against log x."""
    return float(np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)[0])


def logarithmic(axes: Any, x: str, y: str, title: str = "") -> None:
    """Both axes logarithmic, with labels."""
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3, which="both")


def wrong_pairs(axes: Any, shares: Sequence[float]) -> None:
    """Ticks at 1 / clean share that name the share."""
    axes.set_xticks([1 / share for share in shares], [f"1/{share:g}" for share in shares])
    axes.set_xticks([], minor=True)


def reference(axes: Any, x: np.ndarray, start: float, power: float) -> None:
    """A dashed line with this slope through (x[0], start)."""
    x = np.asarray(x, float)
    axes.plot(x, start * (x / x[0]) ** power, "k--", linewidth=1, label=f"slope {power:g}")
