"""Half-true captions: equal to the true one but for a single word.

Does an image score its own caption above its half-true neighbours? Ties follow eval/retrieval.py: half a win in a
pair, the chance of coming first in a group.
"""

from collections import defaultdict

import numpy as np
from jaxtyping import Float, Int

from bacl_jax.eval.retrieval import TIE, Embeddings, chance_of_first


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


def halftrue(embeddings: Embeddings) -> dict[str, float]:
    """The task `halftrue` on one split: every image against the half-true neighbours of its caption, in percent.

    `halftrue_pairwise`: share of (image, neighbour) pairs in which the own caption scores higher; also for each
    attribute that the differing word is about. `halftrue_beat_all`: share of images whose own caption scores above
    all neighbours. Images without a neighbour are left out, and a neighbour that is itself a caption of the image
    is none. `n`: images that count; `n_pairs`: pairs. Without any pair: only these two, at 0.
    """
    captions, anchors = embeddings.split_captions, embeddings.anchors
    true_of = defaultdict(set)
    for anchor, caption in zip(anchors.tolist(), captions.tolist(), strict=True):
        true_of[anchor].add(caption)
    index = embeddings.dataset.half_true
    pairs = [
        (row, caption, other, attribute)
        for row, caption in enumerate(captions.tolist())
        for other, _, attribute in index.neighbours(caption)
        if other not in true_of[anchors[row]]
    ]
    if not pairs:
        return {"n": 0, "n_pairs": 0}
    rows, own, other, attributes = (np.asarray(column) for column in zip(*pairs, strict=True))
    z, w = embeddings.images, embeddings.captions
    true_score, false_score = row_scores(z, w, rows, own), row_scores(z, w, rows, other)
    wins = pair_wins(true_score, false_score)
    metrics = {
        "halftrue_pairwise": 100 * float(wins.mean()),
        "halftrue_beat_all": 100 * float(beat_all(true_score, false_score, rows).mean()),
    }
    metrics |= {f"halftrue_pairwise/{name}": 100 * float(wins[attributes == name].mean()) for name in sorted(set(attributes.tolist()))}
    return metrics | {"n": len(np.unique(rows)), "n_pairs": len(rows)}
