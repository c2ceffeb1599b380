"""The task `audit`: which pairs of a data set are likely wrong, doubled, or unknown matches of each other, as a trained model sees them.

The boundary score (arXiv 2511.08399) of a picture with caption c is BS = s(picture, c) - s(picture, own caption), and the text side's the
same with the parts exchanged: above 0 the model prefers c. The audit takes each pair's largest. A model that is trained on a wrong pair
learns it by heart in the end, and late; so what ranks the pairs is a mean over the checkpoints of a run (as in arXiv 2001.10528, there of
a classifier's margins). The score, the other lists and their thresholds are ours; docs/data.md has every column, and what was measured.
Order depends on nothing but the embeddings.

Dimension legend: P pairs, A pictures, C captions (see corpus.py).
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from bacl_jax.config_eval import AuditConfig
from bacl_jax.errors import DataError
from bacl_jax.eval.compositional import row_scores
from bacl_jax.eval.corpus import Corpus
from bacl_jax.eval.neighbours import Neighbours, among_pictures, pictures_and_captions

SCORES = ("similarity", "boundary_image", "boundary_text", "caption_rank", "image_rank", "mutual")


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an audit found, each list with the likeliest first, and its figures for the result file.

    pairs:           every pair, the likeliest wrong one first.
    duplicates:      two pictures with different keys that show the same.
    false_negatives: a picture and a caption that are in no row together and match as well as those that are.
    unreadable:      rows that could not be read.
    """

    pairs: pd.DataFrame
    duplicates: pd.DataFrame
    false_negatives: pd.DataFrame
    unreadable: pd.DataFrame
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What one checkpoint thinks of each pair.

    similarity: of picture and caption. boundary_image, boundary_text: the largest boundary score of its picture and of its caption,
    -inf where there is no other. caption_rank, image_rank: place of its caption among those nearest to its picture, and the other way
    round; k + 1 stands for all further ones. mutual: both are at most k. better: the caption that boundary_image is about.
    """

    similarity: Float[np.ndarray, " P"]
    boundary_image: Float[np.ndarray, " P"]
    boundary_text: Float[np.ndarray, " P"]
    caption_rank: Int[np.ndarray, " P"]
    image_rank: Int[np.ndarray, " P"]
    mutual: Bool[np.ndarray, " P"]
    better: Int[np.ndarray, " P"]


def audit(reads: Sequence[Callable[[], Corpus]], config: AuditConfig, **how: Any) -> Findings:
    """What a run's checkpoints find in one source. reads: one a checkpoint, the newest last; each reads all of it (`corpus.read`).

    Pairs are ranked by the mean over the checkpoints, the other lists are the newest's. how: `chunk`, `shards`, `show_progress` of the
    searches (see neighbours.py). Work: for each checkpoint A C D twice, and A A D. Memory: one corpus, 24 k bytes a picture or caption, and
    50 bytes a pair and checkpoint. DataError where two reads gave different pairs.
    """
    every: list[Scores] = []
    corpus: Any = None
    for read in reads:
        before, corpus = corpus and (corpus.row, corpus.caption), None  # the former is let go before the next one comes
        corpus = read()
        if before and not all(np.array_equal(a, b) for a, b in zip(before, (corpus.row, corpus.caption), strict=True)):
            raise DataError(
                "the rows that can be read changed while the audit read them again: read from a source that stays", kind="changed"
            )
        near = pictures_and_captions(corpus, config.k, **how)
        every.append(scores(corpus, *near))
    pairs = ranked_pairs(corpus, every)
    duplicates = find_duplicates(corpus, among_pictures(corpus, config.k, **how), config)
    false_negatives = find_false_negatives(corpus, every[-1], near[0], config)
    unreadable = pd.DataFrame([dataclasses.asdict(each) for each in corpus.unreadable], columns=["row", "kind", "shard", "error"])
    metrics: dict[str, float] = {
        "n": len(corpus),
        "n_images": len(corpus.keys),
        "n_captions": len(corpus.captions),
        "n_unreadable": len(unreadable),
        "n_checkpoints": len(every),
        "mutual": 100 * float(pairs.mutual.mean()),
        "prefers_another_caption": 100 * float(np.mean([(one.boundary_image > 0).mean() for one in every])),
        "n_duplicates_exact": int((duplicates.kind == "exact").sum()),
        "n_duplicates_near": int((duplicates.kind == "near").sum()),
        "n_false_negatives": len(false_negatives),
    }
    metrics |= {f"n_unreadable/{kind}": count for kind, count in sorted(Counter(each.kind for each in corpus.unreadable).items())}
    return Findings(pairs, duplicates, false_negatives, unreadable, metrics)


def scores(corpus: Corpus, of_pictures: Neighbours, of_captions: Neighbours) -> Scores:
    """Similarity, boundary scores and ranks of every pair."""
    image, caption = corpus.image, corpus.caption
    own = row_scores(corpus.z, corpus.w, image, caption)
    caption_rank, image_rank = of_pictures.rank(image, own), of_captions.rank(caption, own)
    return Scores(
        similarity=own,
        boundary_image=of_pictures.similarity[image, 0] - own,
        boundary_text=of_captions.similarity[caption, 0] - own,
        caption_rank=caption_rank,
        image_rank=image_rank,
        mutual=(caption_rank <= of_pictures.column.shape[1]) & (image_rank <= of_captions.column.shape[1]),
        better=of_pictures.column[image, 0],
    )


def wrongness(one: Scores) -> Float[np.ndarray, " P"]:
    """The score that pairs are ranked by: halfway between the boundary score, mean of both sides, and the negative similarity."""
    return (one.boundary_image + one.boundary_text) / 4 - one.similarity / 2


def ranked_pairs(corpus: Corpus, every: Sequence[Scores]) -> pd.DataFrame:
    """Every pair with the means of its scores, ordered by `wrongness`; of equal ones the lower row comes first."""
    score = np.mean([wrongness(one) for one in every], axis=0)
    columns = {name: np.mean([getattr(one, name) for one in every], axis=0) for name in SCORES}
    prefers = np.stack([one.boundary_image > 0 for one in every[::-1]])
    last = len(every) - 1 - np.argmax(prefers, axis=0)  # the newest that prefers another caption; where none does, the newest
    better = np.stack([one.better for one in every])[last, np.arange(len(corpus))]
    table = pd.DataFrame(
        {
            "row": corpus.row,
            "key": _take(corpus.keys, corpus.image),
            "shard": _take(corpus.shards, corpus.image),
            "caption": _take(corpus.captions, corpus.caption),
            "score": score,
            **columns,
            "better_caption": _take(corpus.captions, better),
        }
    )
    return table.iloc[np.argsort(-score, kind="stable")].reset_index(drop=True)


def find_duplicates(corpus: Corpus, alike: Neighbours, config: AuditConfig) -> pd.DataFrame:
    """Pairs of pictures: `exact`, with equal pixels (each with the first of its kind); then `near`, by similarity.

    Near ones are among each other's k nearest, with a similarity of at least eval.audit.similarity, and no pixel of their thumbnails
    differs by more than eval.audit.pixels. Ordered by that difference.
    """
    _, first, group = np.unique(corpus.digest, return_index=True, return_inverse=True)
    exact = np.flatnonzero(first[group] < np.arange(len(group)))
    a, place = np.nonzero(alike.mutual(alike) & (alike.similarity >= config.similarity))
    b = alike.column[a, place]
    kept = (a < b) & (group[a] != group[b])
    a, b = np.concatenate([first[group[exact]], a[kept]]), np.concatenate([exact, b[kept]])
    difference = _difference(corpus, a, b)
    similarity = row_scores(corpus.z, corpus.z, a, b) if len(a) else np.zeros(0, np.float32)
    kind = np.where(np.arange(len(a)) < len(exact), "exact", "near")
    caption = corpus.caption[np.unique(corpus.image, return_index=True)[1]]
    table = pd.DataFrame(
        {
            "kind": kind,
            "row": corpus.shown[a],
            "other_row": corpus.shown[b],
            "key": _take(corpus.keys, a),
            "other_key": _take(corpus.keys, b),
            "shard": _take(corpus.shards, a),
            "other_shard": _take(corpus.shards, b),
            "caption": _take(corpus.captions, caption[a]),
            "other_caption": _take(corpus.captions, caption[b]),
            "same_caption": caption[a] == caption[b],
            "similarity": similarity,
            "pixels": difference,
        }
    )
    order = np.lexsort((b, a, difference, kind))
    order = order[(kind[order] == "exact") | (difference[order] <= config.pixels)]
    return table.iloc[order].reset_index(drop=True)


def find_false_negatives(corpus: Corpus, own: Scores, of_pictures: Neighbours, config: AuditConfig) -> pd.DataFrame:
    """Pictures with a caption of another row that fits them, too: the more alike the row's own picture is, the earlier.

    The margin, the smaller one of the two boundary scores (s(picture, caption) less the picture's best own pair, and less the
    caption's), is at least -eval.audit.tolerance, and both of these pairs are mutual: what fits the parts of a wrong pair is told in its
    own list.
    """
    of_image, of_caption = _best(corpus.image, own.similarity), _best(corpus.caption, own.similarity)
    found = of_pictures.column
    margin = of_pictures.similarity - np.maximum(own.similarity[of_image][:, None], own.similarity[of_caption][found])
    sound = (found >= 0) & own.mutual[of_image][:, None] & own.mutual[of_caption][found]
    image, place = np.nonzero(sound & (margin >= -config.tolerance))
    margin, other = margin[image, place], found[image, place]
    mine, theirs = of_image[image], of_caption[other]
    alike = row_scores(corpus.z, corpus.z, image, corpus.image[theirs]) if len(image) else np.zeros(0, np.float32)
    table = pd.DataFrame(
        {
            "row": corpus.shown[image],
            "other_row": corpus.row[theirs],
            "key": _take(corpus.keys, image),
            "other_key": _take(corpus.keys, corpus.image[theirs]),
            "shard": _take(corpus.shards, image),
            "other_shard": _take(corpus.shards, corpus.image[theirs]),
            "caption": _take(corpus.captions, corpus.caption[mine]),
            "other_caption": _take(corpus.captions, other),
            "image_similarity": alike,
            "similarity": own.similarity[mine],
            "other_similarity": of_pictures.similarity[image, place],
            "margin": margin,
        }
    )
    return table.iloc[np.lexsort((other, image, -margin, -alike))].reset_index(drop=True)


def _best(part: Int[np.ndarray, " P"], own: Float[np.ndarray, " P"]) -> Int[np.ndarray, " n"]:
    """Of each picture (or caption), the number of its most similar pair; of equal ones the first."""
    order = np.lexsort((-own, part))
    return order[np.unique(part[order], return_index=True)[1]]


def _difference(corpus: Corpus, a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Largest difference of a pixel of two pictures' thumbnails, in [0, 1]; a few thousand at a time."""
    blocks = [slice(start, start + 4096) for start in range(0, len(a), 4096)]
    parts = [np.abs(corpus.thumbnails[a[s]].astype(np.float32) - corpus.thumbnails[b[s]]).max(axis=(1, 2, 3)) / 255 for s in blocks]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def _take(values: Any, index: Int[np.ndarray, " n"]) -> np.ndarray:
    """values[index]; None at -1."""
    return np.array([*values, None], object)[index]
