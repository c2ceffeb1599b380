"""Re-ranking: the first k entries by cosine in the order of the cross-modal head's matching logit (as in arXiv 2107.07651).

The towers find the candidates, the head, which sees the tokens of picture and caption together, decides between them. Entries beyond the
first k keep their places. Of entries that tie at place k, those that come first in the gallery are candidates.

Dimension legend: Q queries, G gallery entries, R positives of a query (padded with -1), k candidates, n pairs, C captions, T text tokens,
D embedding width, S pixels a side.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from bacl_jax.config import Config
from bacl_jax.data.loader import eval_batches
from bacl_jax.eval.embeddings import Embeddings, progress
from bacl_jax.eval.localization import Rows
from bacl_jax.eval.neighbours import Side, nearest
from bacl_jax.eval.retrieval import TIE, Ranks, own_pairs, padded, rank, retrieval, summarise

FAR = 1e6  # added to a candidate's logit: above any cosine
LOGIT_TIE = 1e-5  # two logits closer than this are tied: they are some tens, and float32 rounds them


@dataclasses.dataclass(frozen=True)
class Matcher:
    """The cross-modal head over pictures and captions by their numbers.

    trainer: has encode_image, encode_text, attend (see train/step.py). ids, mask: tokens of the captions.
    pixels: (pixels of some of the pictures with these numbers, their numbers), in this order; of a batch, the first rows count.
    """

    trainer: Any
    params: Any
    pixels: Callable[[Sequence[int]], Iterable[tuple[UInt8[np.ndarray, "b S S 3"], Sequence[int]]]]
    ids: Int[np.ndarray, "C T"]
    mask: Bool[np.ndarray, "C T"]
    size: int
    show_progress: bool = False

    def logits(self, picture: Int[np.ndarray, " n"], caption: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Matching logit of each pair. A picture is read once, a caption encoded for each pair; memory: the tokens of two batches."""
        order = np.argsort(picture, kind="stable")
        picture, caption, out = picture[order], caption[order], np.empty(len(order), np.float32)
        numbers = np.unique(picture)
        for pixels, held in progress(self.pixels(numbers.tolist()), "re-ranking", -(-len(numbers) // self.size), self.show_progress):
            seen = self.trainer.encode_image(self.params, pixels)
            begin, end = np.searchsorted(picture, [held[0], held[-1] + 1])
            place = np.searchsorted(held, picture[begin:end])
            for start in range(begin, end, self.size):
                rows = np.arange(start, start + self.size).clip(max=end - 1)
                text = self.trainer.encode_text(self.params, self.ids[caption[rows]], self.mask[caption[rows]])
                anchor = jax.tree.map(lambda x, rows=place[rows - begin]: x[rows], seen)
                logit = np.asarray(self.trainer.attend(self.params, text, anchor)[1], np.float32)
                out[start : min(start + self.size, end)] = logit[: end - start]
        if not np.isfinite(out).all():
            raise FloatingPointError(f"{np.sum(~np.isfinite(out))} of {len(out)} matching logits are not finite")
        found = np.empty_like(out)
        found[order] = out
        return found


def reranked(
    z: Float[np.ndarray, "A D"],
    w: Float[np.ndarray, "C D"],
    captions_of: Sequence[Sequence[int]],
    pictures_of: Sequence[Sequence[int]],
    matcher: Matcher,
    config: Config,
) -> dict[str, float]:
    """The numbers of eval/retrieval.py in both directions with the suffix `_reranked`, the first eval.rerank entries re-ordered."""
    k, chunk = config.eval.rerank, config.eval.chunk
    right = {"i2t": padded(captions_of), "t2i": padded(pictures_of)}
    sides = {"i2t": (z, w), "t2i": (w, z)}
    ways = {way: _candidates(queries, gallery, k, chunk) for way, (queries, gallery) in sides.items()}
    pairs = np.concatenate([_pairs(ways["i2t"]), _pairs(ways["t2i"])[:, ::-1]])
    distinct, place = np.unique(pairs, axis=0, return_inverse=True)
    logits = matcher.logits(*distinct.T)[place.reshape(-1)]
    both = dict(zip(ways, np.split(logits, [ways["i2t"].size]), strict=True))
    metrics: dict[str, float] = {}
    for way, (queries, gallery) in sides.items():
        before = rank(queries, gallery, right[way], chunk=chunk)
        metrics |= summarise(reordered(before, right[way], ways[way], both[way].reshape(ways[way].shape)), way, "_reranked", tie=LOGIT_TIE)
    return metrics


def _candidates(queries: Float[np.ndarray, "Q D"], gallery: Float[np.ndarray, "G D"], k: int, chunk: int) -> Int[np.ndarray, "Q k"]:
    number = np.arange(len(queries))
    columns = np.arange(len(gallery)) + len(queries)  # shared with no query, so that none is passed over
    return nearest(Side(queries, number, number), Side(gallery, columns, columns), k, chunk=chunk).column


def _pairs(candidates: Int[np.ndarray, "Q k"]) -> Int[np.ndarray, "n 2"]:
    return np.stack([np.repeat(np.arange(len(candidates)), candidates.shape[1]), candidates.reshape(-1)], axis=1)


def reordered(
    ranks: Ranks, positives: Int[np.ndarray, "Q R"], candidates: Int[np.ndarray, "Q k"], logits: Float[np.ndarray, "Q k"], block: int = 1024
) -> Ranks:
    """`ranks` after the candidates have been put in the order of their logits; `score` is then comparable within a query alone."""
    parts = []
    for start in range(0, len(positives), block):
        here = slice(start, start + block)
        some = dataclasses.replace(ranks, **{field.name: getattr(ranks, field.name)[here] for field in dataclasses.fields(Ranks)})
        parts.append(_reordered(some, positives[here], candidates[here], logits[here]))
    greater, ties, above, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Ranks(greater, ties, above, score, ranks.valid)


def _reordered(
    ranks: Ranks, positives: Int[np.ndarray, "Q R"], candidates: Int[np.ndarray, "Q k"], logits: Float[np.ndarray, "Q k"]
) -> tuple[np.ndarray, ...]:
    """(greater, ties, above, score) of some queries."""
    greater, ties, score, valid = ranks.greater, ranks.ties, ranks.score, ranks.valid
    same = (candidates[:, :, None] == positives[:, None, :]) & valid[:, None, :]
    inside, wrong = same.any(axis=1), ~same.any(axis=2)
    own = np.where(same, logits[:, :, None], -np.inf).max(axis=1)
    above, near = logits[:, :, None] > own[:, None] + LOGIT_TIE, np.abs(logits[:, :, None] - own[:, None]) <= LOGIT_TIE
    before = np.maximum(greater, wrong.sum(axis=1)[:, None])  # of a positive beyond the candidates: all wrong ones of these are above it
    new_greater = np.where(inside, np.sum(wrong[:, :, None] & above, axis=1), before)
    new_ties = np.where(inside, np.sum(wrong[:, :, None] & near, axis=1), np.maximum(greater + ties - before, 0))
    new_score = np.where(valid, np.where(inside, own.astype(np.float64) + FAR, score), -np.inf)
    tie = np.where(inside, LOGIT_TIE, TIE)[:, None, :]
    both = valid[:, :, None] & valid[:, None, :]
    difference = np.where(both, np.where(both, new_score[:, :, None], 0) - np.where(both, new_score[:, None, :], 0), 0)
    higher, equal = both & (difference > tie), both & (np.abs(difference) <= tie)
    rivals = higher.sum(axis=1) + 0.5 * (equal.sum(axis=1) - 1)
    return new_greater, new_ties, rivals, new_score


def split_retrieval(embeddings: Embeddings, *, all_images: bool = True, rerank: bool = True) -> dict[str, float]:
    """The task `retrieval` on one split (eval/retrieval.py), and where eval.rerank > 0, re-ranked among the split's own, unless `rerank` is
    False."""
    metrics = retrieval(embeddings, all_images=all_images)
    config = embeddings.config
    if not (rerank and config.eval.rerank):
        return metrics
    images, captions, of_image, of_caption = own_pairs(embeddings)
    ids, mask = embeddings.tokens
    source = embeddings.dataset.splits[embeddings.split].source

    def pixels(numbers: Sequence[int]) -> Iterator[tuple[np.ndarray, Sequence[int]]]:
        start = 0
        for batch, count in eval_batches(Rows(source, images[np.asarray(numbers)].tolist()), config.data, config.eval.batch_size):
            yield batch, numbers[start : start + count]
            start += count

    matcher = Matcher(
        embeddings.trainer, embeddings.params, pixels, ids[captions], mask[captions], config.eval.batch_size, embeddings.show_progress
    )
    return metrics | reranked(embeddings.images[images], embeddings.captions[captions], of_image, of_caption, matcher, config)
