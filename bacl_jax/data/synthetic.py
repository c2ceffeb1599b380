"""A tiny data set without files, for tests: coloured shapes in places, with captions such as "small red circle left"."""

import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from bacl_jax.config import DataConfig
from bacl_jax.data.emoji import held_out_captions
from bacl_jax.data.source import ArraySource, DataSet, assemble

_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
_SHAPES = ("circle", "square", "triangle", "cross")
_PLACES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_SIZES = {"small": 0.12, "large": 0.22}


def load(config: DataConfig, *, copies: int = 1, holdout: int = 16) -> DataSet:
    """256 captions (2 sizes x 8 colours x 4 shapes x 4 places), `copies` pictures of each, of 2 * image_size pixels a side.

    Copies are jittered and have anchor keys of their own. `holdout` captions each go to validation and test, whose words all occur in
    training; drawn with `config.holdout_seed`. A pure function of its arguments.
    """
    random = np.random.Generator(np.random.PCG64(0))
    captions, images, keys = [], [], []
    for words in itertools.product(_SIZES, _COLOURS, _SHAPES, _PLACES):
        for copy in range(copies):
            captions.append(" ".join(words))
            images.append(_draw(*words, 2 * config.image_size, random.uniform(-0.04, 0.04, 2)))
            keys.append(f"{'-'.join(words)}/{copy}")
    validation, test = held_out_captions(captions, (holdout, holdout), config.holdout_seed)

    def make_source(rows: Sequence[int]) -> ArraySource:
        return ArraySource([images[i] for i in rows], [captions[i] for i in rows], [keys[i] for i in rows])

    return assemble(
        name="synthetic",
        description=f"synthetic shapes, {len(images)} pairs",
        make_source=make_source,
        row_captions=captions,
        row_splits=["validation" if caption in validation else "test" if caption in test else "train" for caption in captions],
        skipped={},
    )


def _draw(size: str, colour: str, shape: str, place: str, side: int, jitter: np.ndarray) -> np.ndarray:
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    x, y = (side * (0.5 + 0.25 * direction + shift) for direction, shift in zip(_PLACES[place], jitter, strict=True))
    r = side * _SIZES[size]
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "triangle":
        draw.polygon([(x - r, y + r), (x + r, y + r), (x, y - r)], fill=colour)
    else:
        draw.line([(x - r, y - r), (x + r, y + r)], fill=colour, width=max(1, side // 16))
        draw.line([(x - r, y + r), (x + r, y - r)], fill=colour, width=max(1, side // 16))
    return np.asarray(image)
