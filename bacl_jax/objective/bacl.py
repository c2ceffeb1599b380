"""The objective, as the weighted sum it is: L = L_contrast + lambda_local L_local + lambda_match L_match + L_policy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bacl_jax.config import ObjectiveConfig
from bacl_jax.objective import bns, cla, infonce
from bacl_jax.objective.bank import Bank, representative
from bacl_jax.objective.sigmoid import sigmoid_loss
from bacl_jax.objective.similarity import cosine, positives
from bacl_jax.schedules import curriculum
from bacl_jax.types import Features, pytree

Metrics = dict[str, Float[Array, ""]]


@pytree
class Pairs:
    """The batch as the objective sees it: both towers' features and what identifies each row."""

    anchor: Features
    text: Features
    ids: Array  # int32 [B, T] caption tokens
    mask: Array  # bool [B, T]
    caption_id: Array  # uint32 [B, 2]
    anchor_id: Array  # uint32 [B, 2]

    @property
    def positive(self) -> Bool[Array, "B B"]:
        """Which text is a positive of which anchor."""
        return positives(self.caption_id, self.anchor_id, self.caption_id, self.anchor_id)


def even_rows(size: int, share: float) -> Int[Array, " n"]:
    """round(share * size) rows, at least one, spread evenly over the batch and so over its shards."""
    count = max(round(share * size), 1)
    return jnp.arange(count) * size // count


def _sample(pairs: Pairs, s: Array, policy: bns.PolicyFn, key: Array, alpha: Array, config: ObjectiveConfig) -> tuple[bns.Draw, bns.Draw]:
    """BNS over the batch, from the anchors' side (rows of s) and from the texts' side (columns)."""
    z, w, own = pairs.anchor.pooled, pairs.text.pooled, jnp.diagonal(s)
    positive, everyone = pairs.positive, jnp.ones(s.shape[0], bool)
    draws = []
    for side, (scores, query, columns, ids) in enumerate(((s, z, w, pairs.caption_id), (s.T, w, z, pairs.anchor_id))):
        keys = bns.row_keys(jax.random.fold_in(key, side), jnp.arange(s.shape[0]))
        allowed = ~positive & representative(ids, everyone)[None]
        draws.append(bns.sample(scores, own, allowed, query, columns, policy, keys, alpha=alpha, config=config.bns))
    return draws[0], draws[1]


@pytree
class Negatives:
    """For each of some rows of the batch one caption that is not its own."""

    rows: Int[Array, " E"]
    text: Features  # of the captions, by the current text tower; the bank's with bns.stale, without tokens
    ids: Array  # int32 [E, T]
    mask: Array  # bool [E, T]
    found: Bool[Array, " E"]  # False where the row has no negative


def _of_batch(pairs: Pairs, column: Int[Array, " B"], found: Bool[Array, " B"]) -> Negatives:
    """For every row the caption of another one."""
    take = lambda x: x[column]  # noqa: E731
    return Negatives(
        rows=jnp.arange(column.shape[0]), text=jax.tree.map(take, pairs.text), ids=take(pairs.ids), mask=take(pairs.mask), found=found
    )


def _from_bank(
    pairs: Pairs, bank: Bank, policy: bns.PolicyFn, encode_text: Callable, key: Array, alpha: Array, config: ObjectiveConfig
) -> tuple[Negatives, Bool[Array, "B E"], bns.Draw]:
    """Channel (b): every row draws one bank caption; for the rows whose draw scores highest it is encoded by the current tower.

    So the schedule chooses among rows too: at first those with the easiest draw, later those with the most ambiguous. Returns
    the captions (columns for every row), where each is a negative of which row, and the draw. With config.bns.stale (an
    ablation) the bank's own, old embedding is used instead.
    """
    size, z = pairs.ids.shape[0], pairs.anchor.pooled
    allowed = ~positives(pairs.caption_id, pairs.anchor_id, bank.caption_id, bank.anchor_id)
    allowed &= representative(bank.caption_id, bank.filled)[None]
    s, own = jax.lax.stop_gradient((cosine(z, bank.text), (z * pairs.text.pooled).sum(-1)))
    keys = bns.row_keys(key, jnp.arange(size))
    drawn = bns.sample(s, own, allowed, z, bank.text, policy, keys, alpha=alpha, config=config.bns)
    rows = jax.lax.top_k(drawn.perturbed.max(1), max(round(config.bns.drawn_share * size), 1))[1]
    slot, found = jax.tree.map(lambda x: x[rows], bns.hardest(drawn))
    ids, mask = bank.ids[slot], bank.mask[slot]
    no_tokens = jnp.zeros((*ids.shape, 0))
    text = Features(pooled=bank.text[slot], tokens=no_tokens) if config.bns.stale else encode_text(ids, mask)
    negative = ~positives(pairs.caption_id, pairs.anchor_id, bank.caption_id[slot], bank.anchor_id[slot])
    return Negatives(rows=rows, text=text, ids=ids, mask=mask, found=found), negative & found[None], drawn


def most_similar(pairs: Pairs, s: Float[Array, "B B"]) -> Negatives:
    """For every row the most similar caption of the batch that is no positive: the negative of CLA without BNS."""
    positive = pairs.positive
    return _of_batch(pairs, jnp.where(positive, -2.0, s).argmax(1), (~positive).any(1))


def local_terms(pairs: Pairs, drawn: Negatives, attend: Callable, config: ObjectiveConfig) -> tuple[Array, Array, Metrics]:
    """CLA on an even share of the rows that have a negative: attention to the own caption against that to the drawn negative.

    The matching loss also rejects the captions of the next `cla.easy` rows: in a shuffled batch a uniform draw. With
    cla.into_towers = False all token features are cut from the gradient: the towers learn from the contrastive term alone.
    """
    if not config.cla.into_towers:
        pairs, drawn = jax.lax.stop_gradient((pairs, drawn))
    size, have = pairs.ids.shape[0], drawn.rows.shape[0]
    pick = even_rows(have, min(config.cla.row_share * size / have, 1.0))
    drawn = jax.tree.map(lambda x: x[pick], drawn)
    rows, easy = drawn.rows, config.cla.easy
    others = (rows[None] + 1 + jnp.arange(easy)[:, None]) % size
    text = jax.tree.map(lambda x, y: jnp.concatenate([x[rows][None], y[None], x[others]]), pairs.text, drawn.text)
    anchor = jax.tree.map(lambda x: x[rows], pairs.anchor)
    attention, logit = attend(text, anchor)
    positive_a, negative_a, compared, aligned = cla.aligned_attention(
        pairs.ids[rows], pairs.mask[rows], attention[0], drawn.ids, drawn.mask, attention[1]
    )
    negative = jnp.concatenate([drawn.found[None], ~pairs.positive[rows[None], others]])
    metrics = {
        "cla_unaligned": (drawn.found & ~aligned).mean(),
        "match_accuracy": jnp.where(drawn.found, logit[0] > logit[1], 0).sum() / jnp.maximum(drawn.found.sum(), 1),
    }
    local = cla.local_loss(positive_a, negative_a, compared, drawn.found & aligned, config.cla)
    return local, cla.match_loss(logit[0], logit[1:], negative), metrics


def _contrast(
    logits: Float[Array, "B B"],
    positive: Bool[Array, "B B"],
    bias: Float[Array, ""] | None,
    weights: tuple[Array, Array] | None,
    drawn: tuple[Array, Array] | None,
    config: ObjectiveConfig,
) -> Float[Array, ""]:
    """L_contrast: the mean of both directions, or the sigmoid loss. `weights`: k q of the anchors' side and of the texts' side."""
    row_weight, column_weight = weights or (None, None)
    if config.kind == "sigmoid":
        assert bias is not None
        both = None if row_weight is None or column_weight is None else (row_weight + column_weight.T) / 2
        return sigmoid_loss(logits, positive, bias, same_id=config.same_id, weight=both, drawn=drawn)
    rows = infonce.direction(logits, positive, same_id=config.same_id, weight=row_weight, drawn=drawn)
    columns = infonce.direction(logits.T, positive.T, same_id=config.same_id, weight=column_weight)
    return (rows.mean() + columns.mean()) / 2


def bacl_loss(
    pairs: Pairs,
    bank: Bank | None,
    *,
    log_scale: Float[Array, ""],
    bias: Float[Array, ""] | None,
    policy: bns.PolicyFn,
    attend: Callable[[Features, Features], Any],
    encode_text: Callable[[Array, Array], Features],
    key: Array,
    progress: Float[Array, ""],
    config: ObjectiveConfig,
) -> tuple[Float[Array, ""], Metrics]:
    """L = L_contrast + lambda_local L_local + lambda_match L_match + L_policy and its parts.

    policy, attend, encode_text are called only where the config switches on what needs them; attend takes several captions an
    anchor: text [N, B, T, C] and anchor [B, P, C] to A [N, B, T, P] and matching logits [N, B]. Memory O(B^2 + B pool D).
    """
    b, scale = config.bns, jnp.exp(log_scale)
    s, positive = cosine(pairs.anchor.pooled, pairs.text.pooled), pairs.positive
    metrics: Metrics = {}
    if config.kind == "infonce":
        metrics = {"loss_floor": infonce.floor(positive, config.same_id), "log_batch": jnp.log(jnp.float32(s.shape[0]))}

    weights = columns = drawn = None
    total = jnp.float32(0)
    if b.enabled:
        alpha = curriculum(progress, b)
        draws = []
        if b.reweight or b.stale or b.drawn_share == 0:
            image_side, text_side = _sample(pairs, jax.lax.stop_gradient(s), policy, jax.random.fold_in(key, 0), alpha, config)
            draws += [image_side, text_side]
            drawn = _of_batch(pairs, *bns.hardest(image_side))
            if b.reweight:
                weights = bns.weight_matrix(image_side, s.shape[1], b.k), bns.weight_matrix(text_side, s.shape[0], b.k)
        if b.drawn_share > 0:
            assert bank is not None
            fetched, negative, bank_side = _from_bank(pairs, bank, policy, encode_text, jax.random.fold_in(key, 1), alpha, config)
            draws.append(bank_side)
            columns = scale * cosine(pairs.anchor.pooled, fetched.text.pooled), negative
            drawn = drawn if b.stale else fetched
        metrics["loss_policy"] = sum((bns.policy_loss(d, alpha=alpha, config=b) for d in draws), jnp.float32(0)) / len(draws)
        metrics |= {"alpha": alpha} | bns.diagnostics(draws[-1], b)
        total += metrics["loss_policy"]

    contrast = _contrast(scale * s, positive, bias, weights, columns, config)
    metrics["loss_contrast"] = contrast
    total += contrast

    if config.cla.enabled:
        drawn = most_similar(pairs, jax.lax.stop_gradient(s)) if drawn is None else drawn
        local, match, extra = local_terms(pairs, drawn, attend, config)
        metrics |= {"loss_local": local, "loss_match": match} | extra
        total += config.cla.lambda_local * local + config.cla.lambda_match * match
    return total, metrics | {"loss": total}
