"""Half-true captions: equal to the true one but for a single word.

Does an image score its own caption above its half-true neighbours? Ties follow eval/retrieval.py: half a win in a
pair, the chance of coming first in a group.
"""

import dataclasses
from collections import defaultdict

import numpy as np
from jaxtyping import Float, Int

from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.retrieval import TIE, chance_of_first


def pair_wins(own: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """1 where the own caption scores higher, 0 where lower, 1/2 at a tie."""
    return np.where(own > other + TIE, 1.0, np.where(other > own + TIE, 0.0, 0.5))


def beat_all(own: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"], group: Int[np.ndarray, " n"]) -> Float[np.ndarray, " g"]:
    """For each distinct value of `group`, the chance that its own caption comes first among all its neighbours."""
    _, row = np.unique(group, return_inverse=True)
    greater, ties = np.bincount(row, other > own + TIE), np.bincount(row, np.abs(other - own) <= TIE)
    return chance_of_first(greater, ties, 1)


def row_scores(
    z: Float[np.ndarray, "N D"], w: Float[np.ndarray, "C D"], rows: Int[np.ndarray, " n"], columns: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """<z[rows[i]], w[columns[i]]> for every i, a few thousand at a time so that the gathered rows stay small."""
    blocks = range(0, len(rows), 4096)
    return np.concatenate([np.einsum("nd,nd->n", z[rows[b : b + 4096]], w[columns[b : b + 4096]]) for b in blocks])


@dataclasses.dataclass(frozen=True)
class ScoredPairs:
    """Images of a split, each with the half-true neighbours of its caption, one neighbour a pair.

    row: of the split. own, other: indices into dataset.captions. position: of the word that differs. attribute: what that word is about.
    true_score, false_score: similarity of the image to both captions.
    """

    row: Int[np.ndarray, " n"]
    own: Int[np.ndarray, " n"]
    other: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]
    attribute: np.ndarray
    true_score: Float[np.ndarray, " n"]
    false_score: Float[np.ndarray, " n"]


def scored_pairs(embeddings: Embeddings) -> ScoredPairs | None:
    """Every pair but those whose neighbour is itself a caption of the image; None without any."""
    captions, anchors = embeddings.split_captions, embeddings.anchors
    true_of = defaultdict(set)
    for anchor, caption in zip(anchors.tolist(), captions.tolist(), strict=True):
        true_of[anchor].add(caption)
    index = embeddings.dataset.half_true
    pairs = [
        (row, caption, other, position, attribute)
        for row, caption in enumerate(captions.tolist())
        for other, position, attribute in index.neighbours(caption)
        if other not in true_of[anchors[row]]
    ]
    if not pairs:
        return None
    row, own, other, position, attribute = (np.asarray(column) for column in zip(*pairs, strict=True))
    z, w = embeddings.images, embeddings.captions
    return ScoredPairs(row, own, other, position, attribute, row_scores(z, w, row, own), row_scores(z, w, row, other))


def blind_scores(embeddings: Embeddings, pairs: ScoredPairs) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Both captions' scores with each image replaced by the direction of the mean of the split's others; all 0 where it has no other."""
    total = embeddings.images[np.unique(embeddings.anchors)].sum(axis=0, dtype=np.float64)
    length = np.linalg.norm(total - embeddings.images, axis=1)[pairs.row]
    of_total = (embeddings.captions @ total)[pairs.own], (embeddings.captions @ total)[pairs.other]
    first, second = (score - own for score, own in zip(of_total, (pairs.true_score, pairs.false_score), strict=True))
    scale = np.where(length > TIE, 1 / np.maximum(length, TIE), 0.0)
    return first * scale, second * scale


def halftrue(embeddings: Embeddings) -> dict[str, float]:
    """The task `halftrue` on one split; of several anchors with the name of each before its metrics, and of all together (fused)."""
    anchors = embeddings.each_anchor()
    if len(anchors) == 1:
        return of_anchor(embeddings)
    return {f"{anchor}/{name}": value for anchor in anchors for name, value in of_anchor(embeddings.of(anchor)).items()}


def of_anchor(embeddings: Embeddings) -> dict[str, float]:
    """Of one anchor: every image against the half-true neighbours of its caption, in percent.

    `halftrue_pairwise`: share of (image, neighbour) pairs in which the own caption scores higher; also for each
    attribute that the differing word is about. `halftrue_beat_all`: share of images whose own caption scores above
    all neighbours. Suffix `_chance`: what guessing gets; `_blind`: what the captions alone give away (`blind_scores`). Images
    without a neighbour are left out, and a neighbour that is itself a caption of the image is none. `n`: images that count;
    `n_pairs`: pairs. Without any pair: only these two, at 0.
    """
    pairs = scored_pairs(embeddings)
    if pairs is None:
        return {"n": 0, "n_pairs": 0}
    metrics: dict[str, float] = {}
    blind = blind_scores(embeddings, pairs)
    level = np.zeros(len(pairs.row))
    for suffix, (own, other) in {"": (pairs.true_score, pairs.false_score), "_blind": blind, "_chance": (level, level)}.items():
        wins = pair_wins(own, other)
        metrics[f"halftrue_pairwise{suffix}"] = 100 * float(wins.mean())
        metrics[f"halftrue_beat_all{suffix}"] = 100 * float(beat_all(own, other, pairs.row).mean())
        for name in sorted(set(pairs.attribute.tolist())):
            metrics[f"halftrue_pairwise/{name}{suffix}"] = 100 * float(wins[pairs.attribute == name].mean())
    return metrics | {"n": len(np.unique(pairs.row)), "n_pairs": len(pairs.row)}
