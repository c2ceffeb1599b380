"""Image-to-text and text-to-image retrieval, ranked in tiles: memory is chunk x tile, never queries x gallery.

Rules, the same in every task:
  Two scores closer than `TIE` are tied (rounding of a float32 dot product of unit vectors), and a tie counts half:
  rank = 1 + #greater + #ties / 2. A fractional hit is the chance that the positive lands among the first k when its
  ties are broken at random, so a collapsed model scores exactly chance.
  A query with several positives is served by its best-ranked one; its other positives are no competitors. Where some of them tie, it is the
  chance that any of these lands among the first k: then, too, a collapsed model scores what guessing does.

Dimension legend: Q queries, G gallery entries, R positives of a query (padded with -1), D embedding width.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bacl_jax.eval.embeddings import FUSED, Embeddings, progress

TIE = 1e-6
WAYS = {"image": ("i2t", "t2i"), "audio": ("a2t", "t2a"), "video": ("v2t", "t2v"), FUSED: ("f2t", "t2f")}  # names of the two directions
TOP = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Where each positive of each query stands; entries of padded slots are undefined.

    greater, ties: negatives that score above, or as high as, the positive.
    above: the query's other positives above it, a tie counting half.
    score: the positive's own score. valid: False in padded slots.
    """

    greater: Int[np.ndarray, "Q R"]
    ties: Int[np.ndarray, "Q R"]
    above: Float[np.ndarray, "Q R"]
    score: Float[np.ndarray, "Q R"]
    valid: Bool[np.ndarray, "Q R"]


@jax.jit
def count_ranks(
    queries: Float[Array, "Q D"], positives: Int[Array, "Q R"], tiles: Float[Array, "K G D"], size: Int[Array, ""]
) -> tuple[Int[Array, "Q R"], Int[Array, "Q R"], Float[Array, "Q R"], Float[Array, "Q R"]]:
    """(greater, ties, above, score) of `Ranks` against a gallery cut into K tiles of G rows, of which `size` rows count.

    Temporary memory: a few arrays [Q, G] and [Q, D], whatever K and R are.
    """
    gallery = tiles.reshape(-1, tiles.shape[-1])
    slots = positives.T
    own = jax.lax.map(lambda slot: jnp.sum(queries * gallery[jnp.maximum(slot, 0)], axis=1), slots)
    own = jnp.where(slots >= 0, own, -jnp.inf)

    def tile(counts, item):
        rows, start = item
        scores = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
        column = start + jnp.arange(rows.shape[0])
        negative = jnp.broadcast_to(column < size, scores.shape)
        negative = jax.lax.fori_loop(0, slots.shape[0], lambda r, kept: kept & (column[None] != slots[r][:, None]), negative)

        def compare(score):
            greater = negative & (scores > score[:, None] + TIE)
            tied = negative & (jnp.abs(scores - score[:, None]) <= TIE)
            return jnp.sum(greater, axis=1, dtype=jnp.int32), jnp.sum(tied, axis=1, dtype=jnp.int32)

        greater, ties = jax.lax.map(compare, own)
        return (counts[0] + greater, counts[1] + ties), None

    zero = jnp.zeros(slots.shape, jnp.int32)
    starts = jnp.arange(tiles.shape[0]) * tiles.shape[1]
    (greater, ties), _ = jax.lax.scan(tile, (zero, zero), (tiles, starts))

    def rivals(score):
        higher, tied = own > score[None] + TIE, jnp.abs(own - score[None]) <= TIE
        return jnp.sum(higher, axis=0) + 0.5 * (jnp.sum(tied, axis=0) - 1)

    return greater.T, ties.T, jax.lax.map(rivals, own).T, own.T


def rank(
    queries: Float[np.ndarray, "Q D"],
    gallery: Float[np.ndarray, "G D"],
    positives: Int[np.ndarray, "Q R"],
    *,
    chunk: int = 1024,
    label: str | None = None,
) -> Ranks:
    """Rank every positive of every query among the gallery, `chunk` queries against `chunk` gallery rows at a time.

    positives: gallery rows that are right for a query, padded with -1; a query without any raises ValueError.
    label: what the progress bar says; None: no bar.
    """
    valid = positives >= 0
    if not valid.any(axis=1).all():
        raise ValueError(f"query {np.flatnonzero(~valid.any(axis=1))[0]} has no positive in the gallery")
    if positives.max() >= len(gallery):
        raise ValueError(f"a positive points to row {positives.max()} of a gallery of {len(gallery)}")
    tile = min(chunk, len(gallery))
    tiles = np.zeros((-(-len(gallery) // tile) * tile, gallery.shape[1]), np.float32)
    tiles[: len(gallery)] = gallery
    tiles = jnp.asarray(tiles.reshape(-1, tile, gallery.shape[1]))
    chunk = min(chunk, len(queries))
    parts = []
    starts = range(0, len(queries), chunk)
    for start in progress(starts, f"ranking {label}", len(starts), label is not None):
        rows = np.arange(start, start + chunk).clip(max=len(queries) - 1)
        found = count_ranks(queries[rows], positives[rows].astype(np.int32), tiles, np.int32(len(gallery)))
        parts.append([np.asarray(part)[: len(queries) - start] for part in found])
    greater, ties, above, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Ranks(greater, ties, above, score, valid)


def chance_of_first(greater: np.ndarray, ties: np.ndarray, k: int, own: np.ndarray | int = 1) -> np.ndarray:
    """Chance in [0, 1] that one of `own` equal entries is among the first k when they and their `ties` come in a random order."""
    places, missed = k - greater, np.ones(np.shape(ties))
    for place in range(k):  # the chance that none of them has come to the places so far
        left = np.maximum(ties - place, 0) / np.maximum(ties + own - place, 1)
        missed = np.where(place < places, missed * left, missed)
    return 1 - missed


def summarise(ranks: Ranks, prefix: str, suffix: str = "", *, tie: float = TIE) -> dict[str, float]:
    """R@k and mAP in percent, and the median rank, under the names `{prefix}_R@1{suffix}` and so on.

    R@k and rank are those of the best-ranked positive. Average precision is the mean over a query's positives of
    (positives up to it) / (its rank among all entries), ties counted half in both.
    """
    best = np.where(ranks.valid, ranks.score, -np.inf).argmax(axis=1)[:, None]
    greater = np.take_along_axis(ranks.greater, best, axis=1)[:, 0]
    ties = np.take_along_axis(ranks.ties, best, axis=1)[:, 0]
    own = np.sum(ranks.valid & (np.abs(ranks.score - np.take_along_axis(ranks.score, best, axis=1)) <= tie), axis=1)
    metrics = {f"{prefix}_R@{k}{suffix}": 100 * float(chance_of_first(greater, ties, k, own).mean()) for k in TOP}
    hits = 1 + ranks.above
    precision = np.where(ranks.valid, hits / (hits + ranks.greater + ranks.ties / 2), 0.0)
    metrics[f"{prefix}_mAP{suffix}"] = 100 * float((precision.sum(axis=1) / ranks.valid.sum(axis=1)).mean())
    metrics[f"{prefix}_median_rank{suffix}"] = float(np.median(1 + greater + ties / 2))
    return metrics


def reciprocal_rank(ranks: Ranks) -> dict[str, float]:
    """MRR in percent: the mean of one over the rank of a query's best positive, ties counted half."""
    place = 1 + np.where(ranks.valid, ranks.greater + ranks.ties / 2, np.inf).min(axis=1)
    return {"MRR": 100 * float((1 / place).mean())}


def discounted_gain(ranks: Ranks) -> dict[str, float]:
    """nDCG in percent, over the whole list, a positive having gain 1: sum 1 / log2(1 + rank), over what the best order gives."""
    gain = np.where(ranks.valid, 1 / np.log2(2 + ranks.greater + ranks.ties / 2 + ranks.above), 0).sum(axis=1)
    best = np.cumsum(1 / np.log2(2 + np.arange(ranks.valid.shape[1])))[ranks.valid.sum(axis=1) - 1]
    return {"nDCG": 100 * float((gain / best).mean())}


FURTHER: dict[str, Callable[[Ranks], dict[str, float]]] = {"audio": reciprocal_rank, "video": discounted_gain}  # anchor -> its own measure


def padded(lists: Sequence[Sequence[int]]) -> Int[np.ndarray, "Q R"]:
    """Lists of unequal length as one array, padded with -1."""
    out = np.full((len(lists), max(1, *map(len, lists), 1)), -1, np.int64)
    for row, entries in zip(out, lists, strict=True):
        row[: len(entries)] = entries
    return out


def ranked(
    queries: Float[np.ndarray, "Q D"],
    gallery: Float[np.ndarray, "G D"],
    positives: Sequence[Sequence[int]],
    prefix: str,
    suffix: str = "",
    *,
    chunk: int,
    show_progress: bool,
    further: Callable[[Ranks], dict[str, float]] | None = None,
) -> dict[str, float]:
    """`rank` and `summarise`; positives: of each query, the rows of the gallery that are right for it. further: measures beside those."""
    label = prefix + suffix if show_progress else None
    ranks = rank(queries, gallery, padded(positives), chunk=chunk, label=label)
    beside = {} if further is None else {f"{prefix}_{name}{suffix}": value for name, value in further(ranks).items()}
    return summarise(ranks, prefix, suffix) | beside


def chance(positives: Sequence[Sequence[int]], gallery: int, prefix: str) -> dict[str, float]:
    """`{prefix}_R@k_chance`: what guessing gets, in percent."""
    own = np.asarray([len(row) for row in positives])
    return {f"{prefix}_R@{k}_chance": 100 * float(chance_of_first(np.zeros_like(own), gallery - own, k, own).mean()) for k in TOP}


def _grouped(keys: Int[np.ndarray, " n"], values: Int[np.ndarray, " n"]) -> dict[int, list[int]]:
    """key -> its distinct values, in order of appearance."""
    groups: dict[int, dict[int, None]] = {}
    for key, value in zip(keys, values, strict=True):
        groups.setdefault(int(key), {})[int(value)] = None
    return {key: list(entries) for key, entries in groups.items()}


def own_pairs(
    embeddings: Embeddings,
) -> tuple[Int[np.ndarray, " A"], Int[np.ndarray, " c"], list[list[int]], list[list[int]]]:
    """(rows of the split's A distinct images, its c captions in dataset.captions, the captions of each image, the images of each caption).

    The last two count in the first two.
    """
    images, row_image = np.unique(embeddings.anchors, return_inverse=True)
    captions, row_caption = np.unique(embeddings.split_captions, return_inverse=True)
    of_image, of_caption = _grouped(row_image, row_caption), _grouped(row_caption, row_image)
    return images, captions, [of_image[i] for i in range(len(images))], [of_caption[c] for c in range(len(captions))]


def retrieval(embeddings: Embeddings, *, all_images: bool = True) -> dict[str, float]:
    """The task `retrieval` on one split, of each anchor and, where there are several, of all together.

    i2t: every image of the split against the split's own captions, and (`_all`) against all captions of the data set.
    t2i: every caption of the split against the split's images, and (`_all`, unless `all_images` is False: it has
    every training image encoded; of images alone) against all images of the data set. An image's positives are the captions it is
    paired with; a caption's are the images paired with it, wherever they are. a2t, t2a: of sounds, with `MRR`; v2t, t2v: of
    clips, with `nDCG`; f2t, t2f: of what a row's anchors give together.
    `<way>_R@k_chance`, with `all_images`: what guessing among the split's own gets.
    `n`: image queries; `n_captions`: caption queries; `n_captions_all`, `n_images_all`: sizes of the full galleries.
    """
    metrics: dict[str, float] = {}
    for anchor in embeddings.each_anchor():
        metrics |= _of_anchor(embeddings.of(anchor), all_images=all_images)
    return metrics


def _of_anchor(embeddings: Embeddings, *, all_images: bool) -> dict[str, float]:
    images, captions, right_captions, right_images = own_pairs(embeddings)
    z, w = embeddings.images[images], embeddings.captions
    there, back = WAYS[embeddings.anchor]
    measure = functools.partial(ranked, chunk=embeddings.config.eval.chunk, show_progress=embeddings.show_progress)
    further = FURTHER.get(embeddings.anchor)
    metrics = measure(z, w[captions], right_captions, there, further=further)
    metrics |= measure(z, w, [[int(captions[c]) for c in row] for row in right_captions], there, "_all")
    metrics |= measure(w[captions], z, right_images, back, further=further)
    guessed = chance(right_captions, len(captions), there) | chance(right_images, len(z), back)
    metrics |= {"n": len(images), "n_captions": len(captions), "n_captions_all": len(w)}
    if all_images and embeddings.config.data.anchors == ("image",):
        others, other_captions = embeddings.other_images
        elsewhere = _grouped(other_captions, np.arange(len(others)) + len(z))
        right_images = [row + elsewhere.get(int(captions[c]), []) for c, row in enumerate(right_images)]
        metrics |= measure(w[captions], np.concatenate([z, others]), right_images, back, "_all")
        metrics["n_images_all"] = len(z) + len(others)
    return metrics | guessed if all_images else metrics
