"""The nearest pictures and captions of a corpus that do not belong together, found in tiles: no matrix of all against all.

Dimension legend: A queries, N columns, k neighbours, D embedding width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from bacl_jax.eval.corpus import Corpus
from bacl_jax.eval.embeddings import progress
from bacl_jax.eval.retrieval import TIE
from bacl_jax.mesh import spread
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.objective.similarity import MASKED, Found, Rows, search


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The k nearest of each query, best first. Where there are fewer: column -1, similarity -inf."""

    similarity: Float[np.ndarray, "A k"]
    column: Int[np.ndarray, "A k"]

    def without(self, dropped: Bool[np.ndarray, "A k"]) -> "Neighbours":
        """The others moved up in their order."""
        similarity = np.where(dropped, -np.inf, self.similarity)
        order = np.argsort(-similarity, axis=1, kind="stable")
        column = np.where(dropped, -1, self.column)
        return Neighbours(np.take_along_axis(similarity, order, 1), np.take_along_axis(column, order, 1))

    def rank(self, query: Int[np.ndarray, " P"], score: Float[np.ndarray, " P"]) -> Int[np.ndarray, " P"]:
        """1 + how many neighbours of a query are nearer than `score`; k + 1 says that all are, or more."""
        return 1 + (self.similarity[query] > score[:, None] + TIE).sum(axis=1)

    def mutual(self, other: "Neighbours") -> Bool[np.ndarray, "A k"]:
        """Where the query is among its neighbour's own k nearest, `other` being those of the columns."""
        rows = np.arange(len(self.column))[:, None]
        return np.stack([(column >= 0) & (other.column[column] == rows).any(axis=1) for column in self.column.T], axis=1)


@dataclasses.dataclass(frozen=True)
class Side:
    """Embeddings, and two numbers of each: a query and a column that share either are passed over."""

    x: Float[np.ndarray, "N D"]
    caption: Int[np.ndarray, " N"]
    anchor: Int[np.ndarray, " N"]

    def rows(self, start: int, size: int) -> Rows:
        """`size` of them from `start` on; rows that are not valid stand for those past the end."""
        count = len(self.x[start : start + size])

        def part(values: np.ndarray) -> np.ndarray:
            return np.pad(values[start : start + size], ((0, size - count), *((0, 0),) * (values.ndim - 1)))

        caption, anchor = (part(number.astype(np.int64)).view(np.uint32).reshape(-1, 2) for number in (self.caption, self.anchor))
        return Rows(
            x=jnp.asarray(part(self.x)),
            caption_id=jnp.asarray(caption),
            anchor_id=jnp.asarray(anchor),
            valid=jnp.arange(size) < count,
        )


@functools.partial(jax.jit, static_argnames=("k", "shards"))
def _search(query: Rows, columns: Rows, *, k: int, shards: Shards) -> Found:
    return search(query, columns, jnp.zeros((query.x.shape[0], 0), jnp.int32), k=k, shards=shards)


def nearest(query: Side, columns: Side, k: int, *, chunk: int = 1024, shards: Shards = ONE_DEVICE, label: str | None = None) -> Neighbours:
    """The k columns that are most similar to each query and share no number with it, `chunk` queries at a time.

    Temporary memory a device, beside its columns: O(chunk k + tile^2); work O(A N D). label: of the progress bar.
    """
    n, count, k = len(columns.x), len(query.x), min(k, len(columns.x))
    placed = columns.rows(0, n + -n % shards.count)
    if shards.mesh is not None:
        placed = jax.device_put(placed, spread(shards.mesh))
    chunk = min(chunk, count) + -min(chunk, count) % shards.count
    similarity, column = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
    starts = range(0, count, chunk)
    for start in progress(starts, label or "", len(starts), label is not None):
        found = _search(query.rows(start, chunk), placed, k=k, shards=shards)
        here = slice(start, min(start + chunk, count))
        similarity[here], column[here] = np.asarray(found.s)[: count - start], np.asarray(found.column)[: count - start]
    there = similarity > MASKED / 2
    return Neighbours(np.where(there, similarity, -np.inf), np.where(there, column, -1))


def pictures_and_captions(
    corpus: Corpus, k: int, *, chunk: int = 1024, shards: Shards = ONE_DEVICE, show_progress: bool = False
) -> tuple[Neighbours, Neighbours]:
    """(captions nearest to each picture, pictures nearest to each caption) that are in no row with it."""
    pictures, captions = _sides(corpus)
    labels = ("nearest captions", "nearest pictures") if show_progress else (None, None)
    of_pictures = nearest(pictures, captions, k, chunk=chunk, shards=shards, label=labels[0])
    of_captions = nearest(captions, pictures, k, chunk=chunk, shards=shards, label=labels[1])
    count = len(corpus.captions)
    known = np.unique(corpus.image * count + corpus.caption)
    pairs = np.arange(len(corpus.keys))[:, None] * count + of_pictures.column
    turned = of_captions.column * count + np.arange(count)[:, None]
    return (
        of_pictures.without(_among(pairs, known) & (of_pictures.column >= 0)),
        of_captions.without(_among(turned, known) & (of_captions.column >= 0)),
    )


def among_pictures(corpus: Corpus, k: int, *, chunk: int = 1024, shards: Shards = ONE_DEVICE, show_progress: bool = False) -> Neighbours:
    """The pictures nearest to each picture."""
    number = np.arange(len(corpus.z))
    queries, columns = Side(corpus.z, number, number), Side(corpus.z, number + len(number), number)  # captions do not matter
    return nearest(queries, columns, k, chunk=chunk, shards=shards, label="pictures alike" if show_progress else None)


def _sides(corpus: Corpus) -> tuple[Side, Side]:
    """Pictures and captions, each with the number of its first partner: so a search passes over most of what belongs together."""
    of_image, of_caption = (np.unique(part, return_index=True)[1] for part in (corpus.image, corpus.caption))
    pictures = Side(corpus.z, corpus.caption[of_image], np.arange(len(corpus.z)))
    return pictures, Side(corpus.w, np.arange(len(corpus.w)), corpus.image[of_caption])


def _among(values: Int[np.ndarray, "A k"], known: Int[np.ndarray, " n"]) -> Bool[np.ndarray, "A k"]:
    """Which values are in `known`, which is sorted."""
    place = np.searchsorted(known, values).clip(max=len(known) - 1)
    return known[place] == values
