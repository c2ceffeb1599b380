"""AEL, attention error localisation: does |A+ - A-| of a half-true pair point at what differs in the picture?

Two half-true captions i and j whose images exist in one style (one vendor) show where the truth lies: the patches in
which the two images differ. A model sees the image of i alone, once with caption i (A+) and once with caption j (A-),
and its answer is the patch with the largest sum_t dA. AEL is the share of answers inside the region; guessing scores
region / P. The measure is ours: the paper (arXiv 2511.08399) names it and gives no formula.

Images on a blank ground differ nowhere in the blank, and the attention of any network, trained or not, moves less there.
So looking away from the blank beats region / P without any grounding. `ael_foreground` takes that away: answers and
chance among the patches that are not blank in both images. Pairs that differ over most of the picture (two flags)
show nothing either and are left out.

Of clips all of this holds frame by frame.

Dimension legend: n pairs, b pairs at a time, S image side, T text tokens, P patches (row-major over a grid),
F frames of a clip.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from bacl_jax.data.loader import anchor_batches, eval_batches
from bacl_jax.eval.embeddings import Embeddings, progress
from bacl_jax.objective import cla
from bacl_jax.types import Features

log = logging.getLogger("bacl_jax")

aligned_delta = jax.jit(cla.delta_attention)
KINDS = {"emoji": "image", "sprites": "video"}  # data whose keys name a style -> the anchor that shows it
THRESHOLD = 0.1  # mean absolute difference of a patch, pixels in [0, 1], above which it belongs to the region
LARGEST_REGION = 0.5  # share of the patches; pairs with a larger region are left out
BLANK = 0.02  # mean absolute difference from white up to which a patch is blank

# (text features, image features) -> attention [b, T, P]
Attend = Callable[[Features, Features], Float[Array, "b T P"]]
# (ids, mask, A) of the true caption, then of the half-true one -> dA [b, T, P] over the rows of the true caption
DeltaAttention = Callable[..., Float[Array, "b T P"]]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Half-true pairs within one style.

    images, others: the images of the true and of the half-true caption, each distinct one once.
    image, other: [n] rows of these. caption, false_caption: [n] indices into dataset.captions.
    """

    images: UInt8[np.ndarray, "i *F S S 3"]
    others: UInt8[np.ndarray, "j *F S S 3"]
    image: Int[np.ndarray, " n"]
    other: Int[np.ndarray, " n"]
    caption: Int[np.ndarray, " n"]
    false_caption: Int[np.ndarray, " n"]

    def take(self, kept: Bool[np.ndarray, " n"]) -> "Pairs":
        """Those pairs for which `kept` is True."""
        columns = {name: getattr(self, name)[kept] for name in ("image", "other", "caption", "false_caption")}
        return dataclasses.replace(self, **columns)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of a source, as a source."""

    source: Any
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.source[self.rows[index]]


def style(anchor_key: str) -> str | None:
    """The style (vendor) of an anchor, the part of its key before the slash; None without one."""
    prefix, slash, _ = anchor_key.partition("/")
    return prefix if slash else None


def find_pairs(embeddings: Embeddings) -> Pairs | None:
    """Every (image of the split, neighbour of its caption) whose neighbour has an image of the same style in any split.

    None when there is no such pair, as always for a manifest: its keys name no style; so for sounds. Memory: the images of the pairs.
    """
    dataset, split = embeddings.dataset, embeddings.dataset.splits[embeddings.split]
    if KINDS.get(embeddings.config.data.kind) != embeddings.anchor:
        return None
    sources = [(split.source, split.caption), (dataset.train, dataset.train_caption)]
    sources += [(part.source, part.caption) for name, part in sorted(dataset.splits.items()) if name != embeddings.split]
    where: dict[tuple[str, int], tuple[int, int]] = {}
    own_style = []
    for number, (source, captions) in enumerate(sources):
        for row, caption in enumerate(np.asarray(captions).tolist()):
            name = style(source[row].anchor_key)
            if name is not None:
                where.setdefault((name, caption), (number, row))
            if number == 0:
                own_style.append(name)
    found = [
        (row, where[own_style[row], other], caption, other)
        for row, caption in enumerate(embeddings.split_captions.tolist())
        for other, _, _ in dataset.half_true.neighbours(caption)
        if (own_style[row], other) in where and other != caption
    ]
    if not found:
        return None
    rows, places, captions, false_captions = zip(*found, strict=True)
    distinct, image = np.unique(np.asarray(rows), return_inverse=True)
    images = _pixels(Rows(split.source, distinct.tolist()), embeddings)
    order = {place: position for position, place in enumerate(sorted(set(places)))}
    by_source = [[row for number, row in order if number == wanted] for wanted in range(len(sources))]
    others = [_pixels(Rows(sources[number][0], wanted), embeddings) for number, wanted in enumerate(by_source) if wanted]
    other = np.asarray([order[place] for place in places])
    return Pairs(images, np.concatenate(others), image, other, np.asarray(captions), np.asarray(false_captions))


def _pixels(source: Any, embeddings: Embeddings) -> UInt8[np.ndarray, "n *F S S 3"]:
    if embeddings.anchor == "video":
        clips = anchor_batches(source, embeddings.config.data, "video", embeddings.config.eval.batch_size)
        return np.concatenate([rows[0][: len(there)] for rows, there in clips])
    batches = eval_batches(source, embeddings.config.data, embeddings.config.eval.batch_size)
    return np.concatenate([np.asarray(images)[:count] for images, count in batches])


def patch_difference(
    images: UInt8[np.ndarray, "n *F S S 3"], others: UInt8[np.ndarray, "m *F S S 3"], grid: tuple[int, int]
) -> Float[np.ndarray, "n P"]:
    """Mean absolute difference of two images in each patch, pixels in [0, 1]; m = n, or 1 for one image against all.

    Of clips the same frame by frame; their grid is (frames, patches of a frame).
    """
    if images.ndim == 5:
        side, frames = math.isqrt(grid[1]), images.shape[1]
        parts = [patch_difference(images[:, at], others[:, at], (side, side)) for at in range(frames)]
        return np.concatenate(parts, axis=1)
    n, height, width, _ = images.shape
    if height % grid[0] or width % grid[1]:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} patches does not divide images of {height} x {width} pixels")
    difference = np.abs(images.astype(np.int16) - others)
    patches = difference.reshape(n, grid[0], height // grid[0], grid[1], width // grid[1], 3)
    return patches.mean(axis=(2, 4, 5), dtype=np.float32).reshape(n, -1) / 255


def regions(pairs: Pairs, grid: tuple[int, int], threshold: float = THRESHOLD) -> tuple[Bool[np.ndarray, "n P"], Bool[np.ndarray, "n P"]]:
    """(region, foreground) of every pair: patches that differ by more than `threshold`; those, and any not blank in both images."""
    white = np.full((1, *pairs.images.shape[1:]), 255, np.uint8)
    drawn = patch_difference(pairs.images, white, grid) > BLANK
    other_drawn = patch_difference(pairs.others, white, grid) > BLANK
    blocks = [slice(start, start + 1024) for start in range(0, len(pairs.image), 1024)]
    region = np.concatenate(
        [patch_difference(pairs.images[pairs.image[b]], pairs.others[pairs.other[b]], grid) > threshold for b in blocks]
    )
    return region, region | drawn[pairs.image] | other_drawn[pairs.other]


def differing_rows(
    ids: Int[np.ndarray, "n T"], mask: Bool[np.ndarray, "n T"], other_ids: Int[np.ndarray, "n T"], other_mask: Bool[np.ndarray, "n T"]
) -> Bool[np.ndarray, "n T"]:
    """Tokens of the first text outside the prefix and the suffix that it shares with the second."""
    length, other_length = mask.sum(axis=1), other_mask.sum(axis=1)
    position = np.arange(ids.shape[1])[None]

    def shared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        valid = (position < length[:, None]) & (position < other_length[:, None])
        return np.cumprod((first == second) & valid, axis=1).sum(axis=1)

    def from_the_end(values: np.ndarray, count: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, np.maximum(count[:, None] - 1 - position, 0), axis=1)

    prefix = shared(ids, other_ids)
    suffix = shared(from_the_end(ids, length), from_the_end(other_ids, other_length))
    suffix = np.minimum(suffix, np.minimum(length, other_length) - prefix)
    return (position >= prefix[:, None]) & (position < (length - suffix)[:, None])


def share_inside(
    score: Float[np.ndarray, "n P"], region: Bool[np.ndarray, "n P"], among: Bool[np.ndarray, "n P"] | None = None
) -> Float[np.ndarray, " n"]:
    """1 where the largest score lies in the region, else 0; among equal largest scores, the share of them inside.

    among: entries that may be an answer; None: all. Scores are >= 0.
    """
    score = score if among is None else np.where(among, score, -1.0)
    largest = score.max(axis=1, keepdims=True)
    first = score >= largest - 1e-6 * np.abs(largest)
    return (first & region).sum(axis=1) / first.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Localization:
    """Per pair: did the largest entry lie inside? In [0, 1].

    image: sum_t dA, the region, among all patches. foreground: the same among the patches of the foreground.
    token: sum_p dA, the differing tokens, among all tokens.
    """

    image: Float[np.ndarray, " n"]
    foreground: Float[np.ndarray, " n"]
    token: Float[np.ndarray, " n"]


def localize(
    embeddings: Embeddings,
    params: Any,
    pairs: Pairs,
    region: Bool[np.ndarray, "n P"],
    foreground: Bool[np.ndarray, "n P"],
    attend: Attend,
    delta_attention: DeltaAttention = aligned_delta,
    label: str = "attention",
) -> Localization:
    """Run the towers of `params` and `attend` over all pairs. Memory: token features of the distinct images and captions."""
    trainer, (ids, mask), size = embeddings.trainer, embeddings.tokens, embeddings.config.eval.batch_size
    used, caption = np.unique(np.concatenate([pairs.caption, pairs.false_caption]), return_inverse=True)
    true_text, false_text = np.split(caption, 2)
    ids, mask = ids[used], mask[used]
    see = trainer.encode_image if embeddings.anchor == "image" else trainer.encode_anchor[embeddings.anchor]
    image = _in_batches(lambda rows: see(params, pairs.images[rows]), len(pairs.images), size)
    text = _in_batches(lambda rows: trainer.encode_text(params, ids[rows], mask[rows]), len(used), size)
    hits = []
    starts = range(0, len(pairs.image), size)
    for start in progress(starts, label, len(starts), embeddings.show_progress):
        rows = np.arange(start, start + size).clip(max=len(pairs.image) - 1)
        i, yes, no = pairs.image[rows], true_text[rows], false_text[rows]
        seen = _take(image, i)
        positive, negative = attend(_take(text, yes), seen), attend(_take(text, no), seen)
        delta = np.asarray(delta_attention(ids[yes], mask[yes], positive, ids[no], mask[no], negative), np.float32)
        if not np.isfinite(delta).all():
            raise FloatingPointError("attention differences are not finite")
        words = differing_rows(ids[yes], mask[yes], ids[no], mask[no])
        score = delta.sum(axis=1)
        inside = share_inside(score, region[rows]), share_inside(score, region[rows], foreground[rows])
        batch = *inside, share_inside(delta.sum(axis=2), words)
        hits.append([part[: len(pairs.image) - start] for part in batch])
    return Localization(*(np.concatenate(column) for column in zip(*hits, strict=True)))


def _in_batches(encode: Callable[[np.ndarray], Features], count: int, size: int) -> Features:
    starts = range(0, count, size)
    parts = [jax.tree.map(np.asarray, encode(np.arange(start, start + size).clip(max=count - 1))) for start in starts]
    return jax.tree.map(lambda *columns: np.concatenate(columns)[:count], *parts)


def _take(features: Features, rows: np.ndarray) -> Features:
    return jax.tree.map(lambda x: x[rows], features)


def _percent(found: Sequence[Localization], suffix: str) -> dict[str, float]:
    """Means over pairs and over models."""
    if not found:
        return {}
    return {
        f"ael{suffix}": 100 * float(np.mean([each.image.mean() for each in found])),
        f"ael_foreground{suffix}": 100 * float(np.mean([each.foreground.mean() for each in found])),
        f"ael_token{suffix}": 100 * float(np.mean([each.token.mean() for each in found])),
    }


def localization(
    embeddings: Embeddings,
    *,
    threshold: float = THRESHOLD,
    largest_region: float = LARGEST_REGION,
    delta_attention: DeltaAttention = aligned_delta,
    baseline: Attend | None = None,
    untrained_seeds: Sequence[int] = (1, 2, 3),
) -> dict[str, float]:
    """The task `localization` on one split, in percent.

    `ael`, `ael_foreground`, `ael_token`: with the model's own cross-modal layers, only where CLA is enabled; with the
    suffix `_untrained` the mean over freshly initialised models. `ael_chance`, `ael_foreground_chance`: mean share of the
    patches in the region. Suffix `_baseline`: with `baseline`, a cross-modal head trained afterwards on the frozen towers.
    `n`: pairs; `n_left_out`: pairs that differ nowhere, or in more than `largest_region` of the patches, or whose
    captions have the same tokens. Without any pair (a manifest has no styles): only `n`, at 0, and a line in the log.
    Cost: a pass over the pairs for each model.
    """
    pairs = embeddings.once("half-true pairs", lambda: find_pairs(embeddings))
    if pairs is None:
        log.info("localization: %s has no half-true pair with both images in one style; nothing to measure", embeddings.split)
        return {"n": 0}
    trainer, (ids, mask) = embeddings.trainer, embeddings.tokens
    region, foreground = regions(pairs, trainer.grid, threshold)
    differing = differing_rows(ids[pairs.caption], mask[pairs.caption], ids[pairs.false_caption], mask[pairs.false_caption])
    kept = region.any(axis=1) & (region.mean(axis=1) <= largest_region) & differing.any(axis=1)
    metrics: dict[str, float] = {"n": int(kept.sum()), "n_left_out": int((~kept).sum())}
    if not kept.any():
        return metrics
    pairs, region, foreground = pairs.take(kept), region[kept], foreground[kept]
    metrics["ael_chance"] = 100 * float(region.mean())
    metrics["ael_foreground_chance"] = 100 * float((region.sum(axis=1) / foreground.sum(axis=1)).mean())

    def measure(params: Any, attend: Attend | None, label: str) -> Localization:
        own = attend or (lambda text, image: trainer.attend(params, text, image)[0])
        return localize(embeddings, params, pairs, region, foreground, own, delta_attention, label)

    if embeddings.config.objective.cla.enabled:
        metrics |= _percent([measure(embeddings.params, None, "attention")], "")
        fresh = (trainer.eval_params(trainer.init(seed)) for seed in untrained_seeds)
        metrics |= embeddings.once(
            ("untrained", tuple(untrained_seeds), threshold, largest_region, delta_attention),
            lambda: _percent([measure(params, None, "attention, untrained") for params in fresh], "_untrained"),
        )
    if baseline is not None:
        metrics |= _percent([measure(embeddings.params, baseline, "attention, baseline")], "_baseline")
    return metrics
