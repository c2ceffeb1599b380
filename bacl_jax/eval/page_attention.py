"""Attention pictures as in figure 4 of the paper, as shapes for the report's template. One patch is one unit of the view box."""

import dataclasses

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.colors import to_hex

from bacl_jax.eval.examples import Examples, data_uri
from bacl_jax.eval.pictures import Triptych, marked_words, top_patches

HEAT = colormaps["inferno_r"]


@dataclasses.dataclass(frozen=True)
class Panel:
    """A picture (data URI) under shapes. cells: (x, y, colour, opacity); boxes, region: (x, y) of patches that are framed or shaded."""

    title: str
    alt: str
    picture: str
    pale: bool = False
    cells: tuple[tuple[int, int, str, float], ...] = ()
    boxes: tuple[tuple[int, int], ...] = ()
    region: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class View:
    """A half-true pair. words, false_words: of both captions, and whether each differs. inside: how many of the boxes lie in the region."""

    words: list[tuple[str, bool]]
    false_words: list[tuple[str, bool]]
    panels: tuple[Panel, ...]
    width: int
    height: int
    boxes: int
    inside: int | None


def views(examples: Examples) -> list[View]:
    return [view(triptych, examples.grid) for triptych in examples.attention]


def view(shown: Triptych, grid: tuple[int, int]) -> View:
    """Attention to the true caption and to the half-true one (means over their words, one scale), and the difference summed over words."""
    positive, negative = shown.positive[shown.words].mean(axis=0), shown.negative[shown.false_words].mean(axis=0)
    delta, top = shown.delta.sum(axis=0), float(max(positive.max(), negative.max()))
    picture, boxes = data_uri(shown.image), top_patches(shown.delta)
    places = [(n % grid[1], n // grid[1]) for n in range(grid[0] * grid[1])]
    true, false = f"“{shown.caption}”", f"“{shown.false_caption}”"
    panels: tuple[Panel, ...] = (
        Panel("image", f"picture of {true}", picture),
        Panel("true caption", f"attention to {true}, {_where(positive, grid)}", picture, True, _cells(positive, grid, top)),
        Panel("half-true caption", f"attention to {false}, {_where(negative, grid)}", picture, True, _cells(negative, grid, top)),
        Panel(
            "difference",
            f"difference of the two, {_where(delta, grid)}",
            picture,
            True,
            _cells(delta, grid, float(delta.max()) or 1.0),
            boxes=tuple(places[n] for n in boxes),
        ),
    )
    if shown.other is not None and shown.region is not None:
        alt, shaded = f"picture of {false}, shaded where it differs", tuple(places[n] for n in np.flatnonzero(shown.region))
        panels += (Panel("image of the half-true caption", alt, data_uri(shown.other), region=shaded),)
    inside = None if shown.region is None else int(shown.region[boxes].sum())
    words, false_words = marked_words(shown.caption, shown.false_caption), marked_words(shown.false_caption, shown.caption)
    return View(words, false_words, panels, grid[1], grid[0], len(boxes), inside)


def _cells(weights: Float[np.ndarray, " P"], grid: tuple[int, int], top: float) -> tuple[tuple[int, int, str, float], ...]:
    shade = np.clip(weights / top, 0, 1)
    cells = ((n % grid[1], n // grid[1], to_hex(HEAT(float(each))), round(0.85 * float(each) ** 0.5, 2)) for n, each in enumerate(shade))
    return tuple(cell for cell in cells if cell[3] > 0.1)


def _where(weights: Float[np.ndarray, " P"], grid: tuple[int, int]) -> str:
    """In words, for who cannot see it: where the largest weight lies."""
    y, x = divmod(int(weights.argmax()), grid[1])
    return f"largest in row {y + 1} of {grid[0]}, column {x + 1} of {grid[1]}"
