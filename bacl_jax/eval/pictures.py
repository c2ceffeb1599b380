"""Pictures of what a model does: its nearest captions and images, and where its attention moves."""

import dataclasses
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea
from matplotlib.patches import Rectangle

from bacl_jax.data.loader import eval_batches
from bacl_jax.eval import localization as ael
from bacl_jax.eval.compositional import scored_pairs
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.localization import Rows

RIGHT, WRONG, MUTED = "#1a7f37", "#b42318", "#667085"
SHOWN_PIXELS = 96  # side of an image in the gallery
UNIT = (0, 1, 1, 0)  # left, right, bottom, top of a picture in its axes


def save(figure: Figure, path: str | os.PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    return path


def raster(figure: Figure, dpi: int = 70) -> UInt8[np.ndarray, "H W 3"]:
    """The figure as pixels."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def pixels(source: Any, rows: Int[np.ndarray, " n"], embeddings: Embeddings) -> UInt8[np.ndarray, "n H H 3"]:
    """Images framed as the model sees them, at a finer resolution."""
    data = dataclasses.replace(embeddings.config.data, image_size=SHOWN_PIXELS)
    if not len(rows):
        return np.zeros((0, SHOWN_PIXELS, SHOWN_PIXELS, 3), np.uint8)
    ((images, count),) = eval_batches(Rows(source, rows.tolist()), data, max(1, len(rows)))
    return images[:count]


def picture(ax: Axes, image: UInt8[np.ndarray, "h w 3"], colour: str = "#d0d5dd", width: float = 1.0) -> None:
    ax.imshow(image, extent=UNIT, interpolation="bicubic")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color=colour, linewidth=width)


def _short(text: str, width: int = 40) -> str:
    return textwrap.shorten(text, width, placeholder=" …")


def spread(count: int, wanted: int) -> Int[np.ndarray, " n"]:
    """Up to `wanted` of 0 .. count - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def retrieval_gallery(embeddings: Embeddings, path: str | os.PathLike, queries: int = 7) -> Path:
    """Images with their five nearest captions among all, captions with their five nearest images of the split; right ones marked."""
    own, captions = embeddings.split_captions, embeddings.dataset.captions
    source = embeddings.dataset.splits[embeddings.split].source
    image_rows = spread(len(own), queries)
    asked = np.unique(own)
    asked = asked[spread(len(asked), queries)]
    nearest_captions = np.argsort(-(embeddings.images[image_rows] @ embeddings.captions.T), axis=1)[:, :5]
    nearest_images = np.argsort(-(embeddings.captions[asked] @ embeddings.images.T), axis=1)[:, :5]
    rows = max(len(image_rows), len(asked))
    figure = Figure(figsize=(15, 1.35 * rows + 0.6))
    grid = figure.add_gridspec(rows, 8, width_ratios=[1, 4, 2.4, 1, 1, 1, 1, 1], wspace=0.12, hspace=0.22, top=0.95)
    for number, (row, image, nearest) in enumerate(zip(image_rows, pixels(source, image_rows, embeddings), nearest_captions, strict=True)):
        picture(figure.add_subplot(grid[number, 0]), image)
        ax = figure.add_subplot(grid[number, 1])
        ax.set_axis_off()
        anchor_rows = np.flatnonzero(embeddings.anchors == embeddings.anchors[row])
        true = set(own[anchor_rows].tolist())
        listed: list[tuple[str, bool | None]] = [(f"{place}. {_short(captions[c])}", int(c) in true) for place, c in enumerate(nearest, 1)]
        if not any(right for _, right in listed):
            listed.append((f"    true: {_short(captions[own[row]])}", None))
        for line, (text, right) in enumerate(listed):
            colour, weight = {True: (RIGHT, "bold"), False: ("#344054", "normal"), None: (WRONG, "normal")}[right]
            ax.text(0, 0.92 - line / 6.2, text, color=colour, weight=weight, fontsize=9, va="center", transform=ax.transAxes)
    for number, (caption, nearest) in enumerate(zip(asked, nearest_images, strict=True)):
        ax = figure.add_subplot(grid[number, 2])
        ax.set_axis_off()
        ax.text(0.95, 0.5, textwrap.fill(_short(captions[caption], 60), 22), ha="right", va="center", fontsize=9, transform=ax.transAxes)
        for place, (row, image) in enumerate(zip(nearest, pixels(source, nearest, embeddings), strict=True)):
            right = own[row] == caption
            picture(figure.add_subplot(grid[number, 3 + place]), image, RIGHT if right else "#d0d5dd", 3.0 if right else 1.0)
    figure.text(0.125, 0.968, "image to text: nearest of all captions", fontsize=11, weight="bold")
    figure.text(0.56, 0.968, f"text to image: nearest images of {embeddings.split}, right ones framed", fontsize=11, weight="bold")
    return save(figure, path)


@dataclasses.dataclass(frozen=True)
class Triptych:
    """What a row of the attention picture shows: one half-true pair as one model sees it.

    image, other: pixels of the true and of the half-true caption's image. region: the patches in which they differ; None as `other` is
    where there is no such image of the same style. positive, negative: A+ and A- [T, P]; delta: dA [T, P] on aligned rows.
    words: rows to be averaged for A+, those of the true caption.
    """

    image: UInt8[np.ndarray, "H H 3"]
    other: UInt8[np.ndarray, "H H 3"] | None
    caption: str
    false_caption: str
    positive: Float[np.ndarray, "T P"]
    negative: Float[np.ndarray, "T P"]
    delta: Float[np.ndarray, "T P"]
    words: Bool[np.ndarray, " T"]
    false_words: Bool[np.ndarray, " T"]
    region: Bool[np.ndarray, " P"] | None


def top_patches(delta: Float[np.ndarray, "T P"], top: int = 10) -> list[int]:
    """The patches that hold the `top` largest entries of dA, each once."""
    entries = np.argsort(-delta, axis=None)[:top]
    return sorted(set((entries % delta.shape[1]).tolist()))


def attention_triptych(rows: Sequence[Triptych], grid: tuple[int, int]) -> Figure:
    """Like figure 4 of the paper: image, A+, A- and dA over it with the ten largest entries boxed, beside the half-true image.

    A+ and A- are means over the words of their caption, dA is the sum over words; A+ and A- share a colour scale.
    Boxes: patches of the ten largest entries of dA. In the last column the true region, where the two images differ.
    """
    figure = Figure(figsize=(12.5, 2.95 * len(rows)))
    grid_spec = figure.add_gridspec(len(rows), 5, wspace=0.05, hspace=0.3)
    for number, row in enumerate(rows):
        axes = [figure.add_subplot(grid_spec[number, column]) for column in range(5)]
        positive, negative = row.positive[row.words].mean(axis=0), row.negative[row.false_words].mean(axis=0)
        top = float(max(positive.max(), negative.max()))
        picture(axes[0], row.image)
        _heat(axes[1], row.image, positive, grid, top)
        _heat(axes[2], row.image, negative, grid, top)
        delta = row.delta.sum(axis=0)
        _heat(axes[3], row.image, delta, grid, float(delta.max()) or 1.0)
        _boxes(axes[3], top_patches(row.delta), grid, edgecolor="#00e5ff", linewidth=1.6, fill=False)
        if row.other is None or row.region is None:
            axes[4].set_axis_off()
        else:
            picture(axes[4], row.other)
            _boxes(axes[4], np.flatnonzero(row.region).tolist(), grid, facecolor=WRONG, alpha=0.25, linewidth=0)
        _marked(axes[0], row.caption, row.false_caption, RIGHT)
        _marked(axes[4], row.false_caption, row.caption, WRONG, right=True)
        for ax, title in zip(axes[1:4], ("A+  (true caption)", "A−  (half-true caption)", "dA  (ten largest entries)"), strict=True):
            ax.set_xlabel(title, fontsize=9, color=MUTED)
        axes[0].set_xlabel("image", fontsize=9, color=MUTED)
        axes[4].set_xlabel("half-true image, true region shaded", fontsize=8.5, color=MUTED)
    return figure


def _heat(ax: Axes, image: UInt8[np.ndarray, "H H 3"], weights: Float[np.ndarray, " P"], grid: tuple[int, int], top: float) -> None:
    """Weights of patches over a pale grey image."""
    grey = image.mean(axis=2)
    picture(ax, np.repeat((255 - 0.45 * (255 - grey))[..., None], 3, axis=2).astype(np.uint8))
    shade = np.clip(weights.reshape(grid) / top, 0, 1)
    ax.imshow(shade, cmap="inferno_r", vmin=0, vmax=1, alpha=0.85 * np.sqrt(shade), extent=UNIT, interpolation="nearest")


def _boxes(ax: Axes, patches: Sequence[int], grid: tuple[int, int], **style: Any) -> None:
    height, width = 1 / grid[0], 1 / grid[1]
    for patch in patches:
        y, x = divmod(patch, grid[1])
        ax.add_patch(Rectangle((x * width, y * height), width, height, **style))


def marked_words(caption: str, other: str) -> list[tuple[str, bool]]:
    """The words of a caption, and whether each differs from the word of `other` at its place."""
    others = other.split()
    return [(word, number >= len(others) or word != others[number]) for number, word in enumerate(caption.split())]


def _marked(ax: Axes, caption: str, other: str, colour: str, right: bool = False) -> None:
    """The caption above the axes, its words that differ from `other`'s in bold colour."""
    parts: list[Artist] = [
        TextArea(word, textprops={"color": colour if marked else "#101828", "weight": "bold" if marked else "normal", "size": 10})
        for word, marked in marked_words(caption, other)
    ]
    box = HPacker(children=parts, pad=0, sep=3.5)
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.01)} if right else {"loc": "lower left", "bbox_to_anchor": (0.0, 1.01)}
    ax.add_artist(AnchoredOffsetbox(child=box, frameon=False, pad=0, borderpad=0, bbox_transform=ax.transAxes, **place))


def triptychs(embeddings: Embeddings, count: int = 4) -> list[Triptych]:
    """Half-true pairs of the split, of as many images, with the attention of the model; empty where there are none.

    Pairs whose two images are of one style, where the data say so. At most eval.batch_size of them: all are encoded at once.
    """
    size = embeddings.config.eval.batch_size
    many = min(count, size)
    shown = embeddings.once(("shown pairs", many), lambda: _styled(embeddings, many) or _any_style(embeddings, many))
    if not shown:
        return []
    (ids, mask), trainer = embeddings.tokens, embeddings.trainer
    true, false = (np.asarray(column) for column in zip(*((one.caption, one.false_caption) for one in shown), strict=True))
    rows = np.arange(size).clip(max=len(shown) - 1)
    image = trainer.encode_image(embeddings.params, np.stack([shown[row].image for row in rows]))

    def attention(captions: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n T P"]:
        text = trainer.encode_text(embeddings.params, ids[captions[rows]], mask[captions[rows]])
        return np.asarray(trainer.attend(embeddings.params, text, image)[0], np.float32)[: len(shown)]

    positive, negative = attention(true), attention(false)
    delta = np.asarray(ael.aligned_delta(ids[true], mask[true], positive, ids[false], mask[false], negative), np.float32)
    return [
        Triptych(
            image=one.image,
            other=one.other,
            caption=embeddings.dataset.captions[one.caption],
            false_caption=embeddings.dataset.captions[one.false_caption],
            positive=positive[n],
            negative=negative[n],
            delta=delta[n],
            words=_words(mask[one.caption]),
            false_words=_words(mask[one.false_caption]),
            region=one.region,
        )
        for n, one in enumerate(shown)
    ]


@dataclasses.dataclass(frozen=True)
class _Pair:
    """An image with two captions of dataset.captions; the half-true one's image and where they differ, where that is known."""

    image: UInt8[np.ndarray, "S S 3"]
    caption: int
    false_caption: int
    other: UInt8[np.ndarray, "S S 3"] | None = None
    region: Bool[np.ndarray, " P"] | None = None


def _styled(embeddings: Embeddings, count: int) -> list[_Pair]:
    """Pairs whose images differ in at most `LARGEST_REGION` of the patches."""
    pairs = ael.find_pairs(embeddings)
    if pairs is None:
        return []
    region, _ = ael.regions(pairs, embeddings.trainer.grid)
    fitting = np.flatnonzero(region.any(axis=1) & (region.mean(axis=1) <= ael.LARGEST_REGION))
    _, first = np.unique(pairs.image[fitting], return_index=True)
    chosen = fitting[first[spread(len(first), count)]] if len(first) else fitting
    pairs = pairs.take(np.isin(np.arange(len(pairs.image)), chosen))
    rows = zip(pairs.image, pairs.caption.tolist(), pairs.false_caption.tolist(), pairs.other, np.sort(chosen), strict=True)
    return [_Pair(pairs.images[image], true, false, pairs.others[other], region[n]) for image, true, false, other, n in rows]


def _any_style(embeddings: Embeddings, count: int) -> list[_Pair]:
    pairs = scored_pairs(embeddings)
    if pairs is None:
        return []
    rows, first = np.unique(pairs.row, return_index=True)
    chosen = spread(len(rows), count)
    source = Rows(embeddings.dataset.splits[embeddings.split].source, rows[chosen].tolist())
    ((images, _),) = eval_batches(source, embeddings.config.data, len(chosen))
    return [_Pair(image, int(pairs.own[n]), int(pairs.other[n])) for image, n in zip(images, first[chosen], strict=True)]


def _words(mask: Bool[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    """Positions between BOS and EOS."""
    position = np.arange(len(mask))
    return (position > 0) & (position < mask.sum() - 1)
