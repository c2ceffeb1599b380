"""A model's embeddings of one split and of all captions: what the tasks of one evaluation share.

Dimension legend: N rows of a source, C captions, T text tokens, D embedding width.
"""

import functools
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.progress import track

from bacl_jax.config import Config, ConfigError
from bacl_jax.data.loader import anchor_batches, eval_batches

T = TypeVar("T")
FUSED = "fused"  # stands for all anchors together
_SHORT = 1e-6  # of a sum of embeddings: a shorter one, as of a row that lacks all anchors, stays as it is


def progress(items: Iterable, description: str, total: int, shown: bool) -> Iterator:
    """`items` behind a progress bar on stderr; no bar when not `shown` or stderr is no terminal."""
    console = Console(stderr=True)
    yield from track(items, description, total=total, console=console, transient=True, disable=not (shown and sys.stderr.isatty()))


class Embeddings:
    """What the tasks of one evaluation share; each part is computed when first asked for, then kept.

    trainer: has encode_image, encode_text, encode_anchor (see train/step.py). params: its evaluation parameters.
    anchor: what is meant by images, the first of data.anchors where it is not told; FUSED: the mean of all.
    Host memory: float32 [rows, D] for captions, for the split and, once asked for, for the other sources.
    """

    def __init__(
        self,
        trainer: Any,
        params: Any,
        dataset: Any,
        tokenizer: Any,
        config: Config,
        split: str,
        *,
        show_progress: bool = False,
        anchor: str | None = None,
    ):
        filled = sorted(name for name, part in dataset.splits.items() if len(part.source))
        if split not in filled:
            raise ConfigError(f"eval.split = {split!r}: the data set has no rows there; splits with rows: {', '.join(filled) or 'none'}")
        self.trainer, self.params, self.dataset, self.tokenizer = trainer, params, dataset, tokenizer
        self.config, self.split, self.show_progress = config, split, show_progress
        self.anchor = anchor or config.data.anchors[0]
        self._shared: dict[Hashable, Any] = {}
        self._anchors: dict[str, Embeddings] = {self.anchor: self}

    def each_anchor(self) -> list[str]:
        """What is evaluated: each anchor and, of several, all together."""
        anchors = self.config.data.anchors
        return [*anchors, FUSED] if len(anchors) > 1 else [*anchors]

    def of(self, anchor: str) -> "Embeddings":
        """The same of another anchor, with the captions of this one."""
        if anchor not in self._anchors:
            options = {"show_progress": self.show_progress, "anchor": anchor}
            other = Embeddings(self.trainer, self.params, self.dataset, self.tokenizer, self.config, self.split, **options)
            other._shared, other._anchors, other.captions = self._shared, self._anchors, self.captions
            self._anchors[anchor] = other
        return self._anchors[anchor]

    def with_params(self, params: Any) -> "Embeddings":
        """The same of other parameters, with what was asked for by `once`."""
        options = {"show_progress": self.show_progress, "anchor": self.anchor}
        other = Embeddings(self.trainer, params, self.dataset, self.tokenizer, self.config, self.split, **options)
        other._shared = self._shared
        return other

    def once(self, name: Hashable, compute: Callable[[], T]) -> T:
        """What does not depend on the parameters: computed when first asked for by its name, also for other parameters."""
        if name not in self._shared:
            self._shared[name] = compute()
        return self._shared[name]

    @property
    def split_captions(self) -> Int[np.ndarray, " N"]:
        """For each row of the split, the index of its caption in dataset.captions."""
        return np.asarray(self.dataset.splits[self.split].caption)

    @property
    def tokens(self) -> tuple[Int[np.ndarray, "C T"], Bool[np.ndarray, "C T"]]:
        """Token ids and their validity for every caption of the data set."""
        return self.once("tokens", lambda: self.tokenizer.encode(list(self.dataset.captions)))

    @functools.cached_property
    def captions(self) -> Float[np.ndarray, "C D"]:
        """Embeddings of all captions of the data set, L2-normalised."""
        size, (ids, mask) = self.config.eval.batch_size, self.tokens
        parts = []
        for start in progress(range(0, len(ids), size), "captions", -(-len(ids) // size), self.show_progress):
            rows = np.arange(start, start + size).clip(max=len(ids) - 1)
            pooled = self.trainer.encode_text(self.params, ids[rows], mask[rows]).pooled
            parts.append(np.asarray(pooled, np.float32)[: len(ids) - start])
        return finite(np.concatenate(parts), "caption")

    @functools.cached_property
    def images(self) -> Float[np.ndarray, "N D"]:
        """Embeddings of the split's images, L2-normalised."""
        if self.anchor == FUSED:
            return fused([self.of(anchor).images for anchor in self.config.data.anchors])
        return self.encode(self.dataset.splits[self.split].source)

    @functools.cached_property
    def other_images(self) -> tuple[Float[np.ndarray, "n D"], Int[np.ndarray, " n"]]:
        """Embeddings and caption indices of the images outside the split: other splits, and train where its rows are known. Rows without
        one are left out."""
        others = [] if self.dataset.train_caption is None else [(self.dataset.train, self.dataset.train_caption)]
        others += [(part.source, part.caption) for name, part in sorted(self.dataset.splits.items()) if name != self.split]
        images = [self.encode(source) for source, _ in others if len(source)]
        captions = [np.asarray(caption, np.int64) for source, caption in others if len(source)]
        empty = np.zeros((0, self.images.shape[1]), np.float32)
        found = np.concatenate([empty, *images])
        there = found.any(1)
        return found[there], np.concatenate([np.zeros(0, np.int64), *captions])[there]

    @property
    def anchors(self) -> Int[np.ndarray, " N"]:
        """For each row of the split, the first row with the same anchor: one image may come in several rows."""
        source = self.dataset.splits[self.split].source
        first: dict[str, int] = {}
        return self.once(
            "anchors", lambda: np.asarray([first.setdefault(source[row].anchor_key, row) for row in range(len(source))], np.int64)
        )

    def encode(self, source: Any) -> Float[np.ndarray, "N D"]:
        """Of the rows of a source; zeros where a row lacks the anchor, or is one of training that data.on_error = "skip" leaves out."""
        if self.anchor == FUSED:
            return fused([self.of(anchor).encode(source) for anchor in self.config.data.anchors])
        size, data = self.config.eval.batch_size, self.config.data
        total, bad = -(-len(source) // size), set() if source is self.dataset.train and data.on_error == "skip" else None
        if data.anchors == ("image",):
            batches = progress(eval_batches(source, data, size, bad), "images", total, self.show_progress)
            parts = [np.asarray(self.trainer.encode_image(self.params, images).pooled, np.float32)[:count] for images, count in batches]
            found = np.concatenate(parts)
            found[sorted(bad or ())] = 0
            return finite(found, "image")
        tower, parts = self.trainer.encode_anchor[self.anchor], []
        for rows, there in progress(anchor_batches(source, data, self.anchor, size, bad), self.anchor, total, self.show_progress):
            parts.append(np.where(there[:, None], np.asarray(tower(self.params, *rows).pooled, np.float32)[: len(there)], 0))
        return finite(np.concatenate(parts), self.anchor)


def fused(parts: Sequence[Float[np.ndarray, "N D"]]) -> Float[np.ndarray, "N D"]:
    """The direction of the mean of a row's embeddings; those that it lacks are zeros."""
    total = np.sum(parts, axis=0)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), _SHORT)


def finite(embeddings: np.ndarray, what: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise FloatingPointError(f"{bad.size} of {len(embeddings)} {what} embeddings are not finite, the first in row {bad[0]}")
    return embeddings
