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


def even_rows(size: int, share: float) -> Int[Array, " n"]:
    """round(share * size) rows, at least one, spread evenly over the batch and so over its shards."""
    count = max(round(share * size), 1)
    return jnp.arange(count) * size // count


def _sample(pairs: Pairs, s: Array, policy: bns.PolicyFn, key: Array, alpha: Array, config: ObjectiveConfig) -> tuple[bns.Draw, bns.Draw]:
    """BNS over the batch, from the anchors' side (rows of s) and from the texts' side (columns)."""
    z, w, own = pairs.anchor.pooled, pairs.text.pooled, jnp.diagonal(s)
    positive = positives(pairs.caption_id, pairs.anchor_id, pairs.caption_id, pairs.anchor_id)
    everyone = jnp.ones(s.shape[0], bool)
    draws = []
    for side, (scores, query, columns, ids) in enumerate(((s, z, w, pairs.caption_id), (s.T, w, z, pairs.anchor_id))):
        keys = bns.row_keys(jax.random.fold_in(key, side), jnp.arange(s.shape[0]))
        allowed = ~positive & representative(ids, everyone)[None]
        draws.append(bns.sample(scores, own, allowed, query, columns, policy, keys, alpha=alpha, config=config.bns))
    return draws[0], draws[1]


def _from_bank(
    pairs: Pairs, bank: Bank, policy: bns.PolicyFn, encode_text: Callable, key: Array, alpha: Array, config: ObjectiveConfig
) -> tuple[Array, Bool[Array, "B E"], bns.Draw]:
    """Channel (b): for a share of the rows one bank caption is drawn and encoded by the current tower.

    Returns embeddings [E, D] (columns for every row), where each is a negative, and the draw. With config.bns.stale
    (an ablation) the bank's own, old embedding is used instead.
    """
    size = pairs.ids.shape[0]
    rows = even_rows(size, config.bns.drawn_share)
    z = pairs.anchor.pooled[rows]
    allowed = ~positives(pairs.caption_id[rows], pairs.anchor_id[rows], bank.caption_id, bank.anchor_id)
    allowed &= representative(bank.caption_id, bank.filled)[None]
    own = (z * pairs.text.pooled[rows]).sum(-1)
    s, own = jax.lax.stop_gradient((cosine(z, bank.text), own))
    drawn = bns.sample(s, own, allowed, z, bank.text, policy, bns.row_keys(key, rows), alpha=alpha, config=config.bns)
    slot, found = bns.hardest(drawn)
    w = bank.text[slot] if config.bns.stale else encode_text(bank.ids[slot], bank.mask[slot]).pooled
    negative = ~positives(pairs.caption_id, pairs.anchor_id, bank.caption_id[slot], bank.anchor_id[slot])
    return w, negative & found[None], drawn


def local_terms(pairs: Pairs, drawn: bns.Draw | None, s: Array, attend: Callable, config: ObjectiveConfig) -> tuple[Array, Array, Metrics]:
    """CLA on an even share of the rows: attention to the own caption against that of the hardest drawn negative.

    Without BNS the negative is the most similar caption of the batch that is not a positive. With cla.into_towers = False the
    token features are cut from the gradient: the towers learn from the contrastive term alone.
    """
    if not config.cla.into_towers:
        pairs = jax.lax.stop_gradient(pairs)
    size = pairs.ids.shape[0]
    rows = even_rows(size, config.cla.row_share)
    if drawn is None:
        blocked = positives(pairs.caption_id, pairs.anchor_id, pairs.caption_id, pairs.anchor_id)
        negative, found = jnp.where(blocked, -2.0, s).argmax(1)[rows], (~blocked).any(1)[rows]
    else:
        negative, found = (x[rows] for x in bns.hardest(drawn))
    both = jnp.concatenate([rows, negative])
    anchor = jax.tree.map(lambda x: x[jnp.concatenate([rows, rows])], pairs.anchor)
    attention, logit = attend(jax.tree.map(lambda x: x[both], pairs.text), anchor)
    n = rows.shape[0]
    positive_a, negative_a, compared, aligned = cla.aligned_attention(
        pairs.ids[rows], pairs.mask[rows], attention[:n], pairs.ids[negative], pairs.mask[negative], attention[n:]
    )
    use = found & aligned
    metrics = {
        "cla_unaligned": (found & ~aligned).mean(),
        "match_accuracy": jnp.where(found, ((logit[:n] > 0) + (logit[n:] < 0)) / 2, 0).sum() / jnp.maximum(found.sum(), 1),
    }
    return cla.local_loss(positive_a, negative_a, compared, use, config.cla), cla.match_loss(logit[:n], logit[n:], found), metrics


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

    policy, attend, encode_text are called only where the config switches on what needs them. Memory O(B^2 + B pool D).
    """
    b, scale = config.bns, jnp.exp(log_scale)
    s = cosine(pairs.anchor.pooled, pairs.text.pooled)
    positive = positives(pairs.caption_id, pairs.anchor_id, pairs.caption_id, pairs.anchor_id)
    metrics: Metrics = {}
    if config.kind == "infonce":
        metrics = {"loss_floor": infonce.floor(positive, config.same_id), "log_batch": jnp.log(jnp.float32(s.shape[0]))}

    image_side = text_side = None
    weights = extra_columns = None
    total = jnp.float32(0)
    if b.enabled:
        alpha = curriculum(progress, b)
        image_side, text_side = _sample(pairs, jax.lax.stop_gradient(s), policy, jax.random.fold_in(key, 0), alpha, config)
        draws = [image_side, text_side]
        if b.reweight:
            weights = bns.weight_matrix(image_side, s.shape[1], b.k), bns.weight_matrix(text_side, s.shape[0], b.k)
        if b.drawn_share > 0:
            assert bank is not None
            w, negative, bank_side = _from_bank(pairs, bank, policy, encode_text, jax.random.fold_in(key, 1), alpha, config)
            extra_columns = scale * cosine(pairs.anchor.pooled, w), negative
            draws.append(bank_side)
        metrics["loss_policy"] = sum((bns.policy_loss(d, alpha=alpha, config=b) for d in draws), jnp.float32(0)) / len(draws)
        metrics |= {"alpha": alpha} | bns.diagnostics(image_side, b)
        total += metrics["loss_policy"]

    contrast = _contrast(scale * s, positive, bias, weights, extra_columns, config)
    metrics["loss_contrast"] = contrast
    total += contrast

    if config.cla.enabled:
        local, match, extra = local_terms(pairs, image_side, jax.lax.stop_gradient(s), attend, config)
        metrics |= {"loss_local": local, "loss_match": match} | extra
        total += config.cla.lambda_local * local + config.cla.lambda_match * match
    return total, metrics | {"loss": total}
