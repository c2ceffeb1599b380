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
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea
from matplotlib.patches import Rectangle

from bacl_jax.data.loader import eval_batches
from bacl_jax.eval import localization as ael
from bacl_jax.eval.localization import Rows
from bacl_jax.eval.retrieval import Embeddings

RIGHT, WRONG, MUTED = "#1a7f37", "#b42318", "#667085"
SHOWN_PIXELS = 96  # side of an image in the gallery
UNIT = (0, 1, 1, 0)  # left, right, bottom, top of a picture in its axes


def save(figure: Figure, path: str | os.PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    return path


def _pictures(source: Any, rows: Int[np.ndarray, " n"], embeddings: Embeddings) -> UInt8[np.ndarray, "n H H 3"]:
    """Images framed as the model sees them, at a finer resolution."""
    data = dataclasses.replace(embeddings.config.data, image_size=SHOWN_PIXELS)
    ((images, count),) = eval_batches(Rows(source, rows.tolist()), data, max(1, len(rows)))
    return images[:count]


def picture(ax: Axes, image: UInt8[np.ndarray, "h w 3"], colour: str = "#d0d5dd", width: float = 1.0) -> None:
    ax.imshow(image, extent=UNIT, interpolation="bicubic")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color=colour, linewidth=width)


def _short(text: str, width: int = 40) -> str:
    return textwrap.shorten(text, width, placeholder=" …")


def _spread(count: int, wanted: int) -> Int[np.ndarray, " n"]:
    """Up to `wanted` of 0 .. count - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def retrieval_gallery(embeddings: Embeddings, path: str | os.PathLike, queries: int = 7) -> Path:
    """Images with their five nearest captions among all, captions with their five nearest images of the split; right ones marked."""
    own, captions = embeddings.split_captions, embeddings.dataset.captions
    source = embeddings.dataset.splits[embeddings.split].source
    image_rows = _spread(len(own), queries)
    asked = np.unique(own)
    asked = asked[_spread(len(asked), queries)]
    nearest_captions = np.argsort(-(embeddings.images[image_rows] @ embeddings.captions.T), axis=1)[:, :5]
    nearest_images = np.argsort(-(embeddings.captions[asked] @ embeddings.images.T), axis=1)[:, :5]
    rows = max(len(image_rows), len(asked))
    figure = Figure(figsize=(15, 1.35 * rows + 0.6))
    grid = figure.add_gridspec(rows, 8, width_ratios=[1, 4, 2.4, 1, 1, 1, 1, 1], wspace=0.12, hspace=0.22, top=0.95)
    for number, (row, image, nearest) in enumerate(
        zip(image_rows, _pictures(source, image_rows, embeddings), nearest_captions, strict=True)
    ):
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
        for place, (row, image) in enumerate(zip(nearest, _pictures(source, nearest, embeddings), strict=True)):
            right = own[row] == caption
            picture(figure.add_subplot(grid[number, 3 + place]), image, RIGHT if right else "#d0d5dd", 3.0 if right else 1.0)
    figure.text(0.125, 0.968, "image to text: nearest of all captions", fontsize=11, weight="bold")
    figure.text(0.56, 0.968, f"text to image: nearest images of {embeddings.split}, right ones framed", fontsize=11, weight="bold")
    return save(figure, path)


@dataclasses.dataclass(frozen=True)
class Triptych:
    """What a row of the attention picture shows: one half-true pair as one model sees it.

    image, other: pixels of the true and of the half-true caption's image. positive, negative: A+ and A- [T, P];
    delta: dA [T, P] on aligned rows. words: rows to be averaged for A+, those of the true caption.
    """

    image: UInt8[np.ndarray, "H H 3"]
    other: UInt8[np.ndarray, "H H 3"]
    caption: str
    false_caption: str
    positive: Float[np.ndarray, "T P"]
    negative: Float[np.ndarray, "T P"]
    delta: Float[np.ndarray, "T P"]
    words: Bool[np.ndarray, " T"]
    false_words: Bool[np.ndarray, " T"]
    region: Bool[np.ndarray, " P"]


def top_patches(delta: Float[np.ndarray, "T P"], top: int = 10) -> list[int]:
    """The patches that hold the `top` largest entries of dA, each once."""
    entries = np.argsort(-delta, axis=None)[:top]
    return sorted(set((entries % delta.shape[1]).tolist()))


def attention_triptych(rows: Sequence[Triptych], grid: tuple[int, int], path: str | os.PathLike) -> Path:
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
        picture(axes[4], row.other)
        _boxes(axes[4], np.flatnonzero(row.region).tolist(), grid, facecolor=WRONG, alpha=0.25, linewidth=0)
        _marked(axes[0], row.caption, row.false_caption, RIGHT)
        _marked(axes[4], row.false_caption, row.caption, WRONG, right=True)
        for ax, title in zip(axes[1:4], ("A+  (true caption)", "A−  (half-true caption)", "dA  (ten largest entries)"), strict=True):
            ax.set_xlabel(title, fontsize=9, color=MUTED)
        axes[0].set_xlabel("image", fontsize=9, color=MUTED)
        axes[4].set_xlabel("half-true image, true region shaded", fontsize=8.5, color=MUTED)
    return save(figure, path)


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


def _marked(ax: Axes, caption: str, other: str, colour: str, right: bool = False) -> None:
    """The caption above the axes, its words that differ from `other`'s in bold colour."""
    words, others = caption.split(), other.split()
    differs = [number >= len(others) or word != others[number] for number, word in enumerate(words)]
    parts: list[Artist] = [
        TextArea(word, textprops={"color": colour if marked else "#101828", "weight": "bold" if marked else "normal", "size": 10})
        for word, marked in zip(words, differs, strict=True)
    ]
    box = HPacker(children=parts, pad=0, sep=3.5)
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.01)} if right else {"loc": "lower left", "bbox_to_anchor": (0.0, 1.01)}
    ax.add_artist(AnchoredOffsetbox(child=box, frameon=False, pad=0, borderpad=0, bbox_transform=ax.transAxes, **place))


def triptychs(embeddings: Embeddings, count: int = 4) -> list[Triptych]:
    """Half-true pairs of the split, of as many images, with the attention of the model; empty where there are none."""
    pairs, trainer = ael.find_pairs(embeddings), embeddings.trainer
    if pairs is None:
        return []
    region, _ = ael.regions(pairs, trainer.grid)
    fitting = np.flatnonzero(region.any(axis=1) & (region.mean(axis=1) <= ael.LARGEST_REGION))
    _, first = np.unique(pairs.image[fitting], return_index=True)
    chosen = fitting[first][_spread(len(first), count)] if len(first) else []
    (ids, mask), size, shown = embeddings.tokens, embeddings.config.eval.batch_size, []
    for n in chosen:
        true, false = int(pairs.caption[n]), int(pairs.false_caption[n])
        image = trainer.encode_image(embeddings.params, pairs.images[[pairs.image[n]] * size])

        def attention(caption: int, image: Any = image) -> np.ndarray:
            text = trainer.encode_text(embeddings.params, ids[[caption] * size], mask[[caption] * size])
            return np.asarray(trainer.attend(embeddings.params, text, image)[0], np.float32)[:1]

        positive, negative = attention(true), attention(false)
        delta = ael.aligned_delta(ids[[true]], mask[[true]], positive, ids[[false]], mask[[false]], negative)
        shown.append(
            Triptych(
                image=pairs.images[pairs.image[n]],
                other=pairs.others[pairs.other[n]],
                caption=embeddings.dataset.captions[true],
                false_caption=embeddings.dataset.captions[false],
                positive=positive[0],
                negative=negative[0],
                delta=np.asarray(delta, np.float32)[0],
                words=_words(mask[true]),
                false_words=_words(mask[false]),
                region=region[n],
            )
        )
    return shown


def _words(mask: Bool[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    """Positions between BOS and EOS."""
    position = np.arange(len(mask))
    return (position > 0) & (position < mask.sum() - 1)
