"""A model as the benchmarks use it: texts, and picture files of a folder, become embeddings, in batches.

Dimension legend: N texts, A pictures, D embedding width, b rows of a batch, S pixels a side.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from bacl_jax.config import Config
from bacl_jax.data import transforms
from bacl_jax.data.source import normalise
from bacl_jax.errors import DataError
from bacl_jax.eval import corpus
from bacl_jax.eval.embeddings import finite, progress
from bacl_jax.rules import check_pictures


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture file, or a part of it.

    names: paths relative to a folder; the first that exists is the picture.
    box:   (left, top, width, height) in pixels of the picture; None: all of it.
    """

    names: tuple[str, ...]
    box: tuple[int, int, int, int] | None = None

    def where(self, width: int, height: int) -> transforms.Window:
        """The centre square of the box, or of the picture."""
        left, top, width, height = self.box or (0, 0, width, height)
        window = transforms.square(width, height)
        return dataclasses.replace(window, left=left + window.left, top=top + window.top)


Encoded = tuple[Float[np.ndarray, "n D"], list[int], dict[int, DataError]]
Block = tuple[UInt8[np.ndarray, "b S S 3"], list[int], dict[int, DataError]]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """trainer: has encode_image and encode_text (see train/step.py); params: its evaluation parameters, on the devices."""

    trainer: Any
    params: Any
    tokenizer: Any
    config: Config
    show_progress: bool = False

    def __post_init__(self):
        check_pictures(self.config, "tasks on picture files")

    def quiet(self) -> "Encoder":
        """The same without progress bars."""
        return dataclasses.replace(self, show_progress=False)

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """L2-normalised embeddings of texts, which are normalised as captions are in training. Memory: 4 N D bytes."""
        known = [normalise(text) for text in texts]
        return corpus.encode_captions(
            self.trainer, self.params, self.tokenizer, known, self.config, show_progress=self.show_progress and len(known) > 1000
        )

    def text_statistics(self, texts: Sequence[str]) -> dict[str, float]:
        """In percent. `unknown_tokens`: tokens that the tokenizer does not know; `cut_captions`: texts that it cuts to its length."""
        known, unknown, tokens = [normalise(text) for text in texts], 0, 0
        for start in range(0, len(known), 4096):
            found = corpus.unknown_tokens(self.tokenizer, known[start : start + 4096])
            unknown, tokens = unknown + found[0], tokens + found[1]
        return {
            "unknown_tokens": 100 * unknown / max(1, tokens),
            "cut_captions": 100 * self.tokenizer.too_long(known) / max(1, len(known)),
        }

    def pictures(self, folder: Path, pictures: Sequence[Shown]) -> tuple[Float[np.ndarray, "A D"], dict[int, DataError]]:
        """(L2-normalised embeddings, errors by place); a picture with an error has zeros. Without any good picture, D is 0.

        Memory: 4 A D bytes, and the pixels of eval.batch_size pictures.
        """
        z, errors = np.zeros((len(pictures), 0), np.float32), {}
        for found, rows, bad in self.batches(folder, pictures):
            errors |= bad
            if not z.size:
                z = np.zeros((len(pictures), found.shape[1]), np.float32)
            z[rows] = found
        return z, errors

    def batches(self, folder: Path, pictures: Sequence[Shown]) -> Iterator[Encoded]:
        """`encoded` of the pictures of a folder."""
        return self.encoded(lambda place: self.picture(folder, pictures[place]), len(pictures))

    def encoded(self, read: Callable[[int], UInt8[np.ndarray, "S S 3"]], count: int) -> Iterator[Encoded]:
        """(embeddings, the places of their pictures, errors by place) of read(0) ... read(count - 1), eval.batch_size at a time.

        Of a batch without a good picture, the embeddings are [0, D], with D = 0 as long as no picture was good.
        """
        width, total = 0, -(-count // self.config.eval.batch_size)
        for pixels, rows, bad in progress(self._blocks(read, count), "pictures", total, self.show_progress):
            found = np.zeros((0, width), np.float32)
            if rows:
                found = finite(np.asarray(self.trainer.encode_image(self.params, pixels).pooled, np.float32)[: len(rows)], "picture")
                width = found.shape[1]
            yield found, rows, bad

    def pixels(self, folder: Path, pictures: Sequence[Shown]) -> Iterator[Block]:
        """(pixels, the places of those that are good, errors by place) of the pictures of a folder."""
        return self._blocks(lambda place: self.picture(folder, pictures[place]), len(pictures))

    def _blocks(self, read: Callable[[int], UInt8[np.ndarray, "S S 3"]], count: int) -> Iterator[Block]:
        """Pictures read by data.threads threads; those that are good come first in a batch, the rest of it is black."""
        size, side = self.config.eval.batch_size, self.config.data.image_size
        for block in corpus.blocks(read, count, size, self.config.data.threads):
            pixels, rows, bad = np.zeros((size, side, side, 3), np.uint8), [], {}
            for place, found in block:
                if isinstance(found, DataError):
                    bad[place] = found
                else:
                    pixels[len(rows)] = found
                    rows.append(place)
            yield pixels, rows, bad

    def picture(self, folder: Path, shown: Shown) -> UInt8[np.ndarray, "S S 3"]:
        """The pixels that the model sees. Raises DataError."""
        data = self.config.data
        path = _locate(folder, shown.names)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error})", kind="unreadable") from error
        picture = transforms.Encoded(content, str(path), "", data.max_pixels, 2 * data.image_size)
        return picture.crop(data.image_size, shown.where, data.resample)


def _locate(folder: Path, names: Sequence[str]) -> Path:
    """The first of the files that exists. DataError of kind "outside" for a name that leads out of the folder, else "missing"."""
    root = os.path.abspath(folder)
    for name in names:
        path = os.path.normpath(os.path.join(root, name))
        if os.path.commonpath([root, path]) != root:
            raise DataError(f"{name!r} lies outside {folder}", kind="outside")
        try:
            if os.path.isfile(path):
                return Path(path)
        except ValueError:  # a NUL in the name
            continue
    raise DataError(f"{' or '.join(map(repr, names))}: no such file in {folder}", kind="missing")
