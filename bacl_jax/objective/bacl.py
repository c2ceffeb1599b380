"""The objective, as the weighted sum it is: L = L_contrast + lambda_local L_local + lambda_match L_match + L_policy."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bacl_jax.config_objective import ObjectiveConfig
from bacl_jax.objective import bns, cla
from bacl_jax.objective.bank import Bank
from bacl_jax.objective.contrast import contrast as contrastive_term
from bacl_jax.objective.pairs import Captions, Groups, Pairs, even_rows
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.objective.similarity import MASKED, Rows, same_pair, search
from bacl_jax.objective.tile import Side
from bacl_jax.schedules import curriculum
from bacl_jax.types import Features, pytree

Metrics = dict[str, Float[Array, ""]]


@pytree
class Negatives:
    """For some rows of each group one caption that is not its own, E in all."""

    place: Int[Array, "G n"]  # of the rows in their groups
    captions: Captions  # by the current text tower; with bns.stale by an old one, without tokens
    columns: Rows  # the captions as columns of every row; not valid where the row has no negative


def _sample(
    pairs: Pairs, own: Array, policy: bns.PolicyFn, key: Array, alpha: Array, config: ObjectiveConfig, shards: Shards
) -> list[bns.Draw]:
    """BNS over the batch, from the anchors' side and from the texts' side."""
    anchors, texts = pairs.anchors(), pairs.texts()
    draws = []
    for side, (query, columns) in enumerate(((anchors, texts), (texts, anchors))):
        keys = bns.row_keys(jax.random.fold_in(key, side), jnp.arange(own.shape[0]))
        draws.append(bns.sample(query, columns, own, policy, keys, alpha=alpha, config=config.bns, paired=pairs.paired, shards=shards))
    return draws


def from_batch(
    pairs: Pairs,
    column: Array,
    found: Array,
    groups: Groups,
    config: ObjectiveConfig,
    shards: Shards = ONE_DEVICE,
) -> Negatives:
    """For CLA's rows the caption of another row: it comes as token ids, to be encoded where it is used."""
    place = jnp.broadcast_to(even_rows(groups.rows, n := groups.share(config.cla.row_share)), (groups.count, n))
    column, found = groups.take((column, found), place)
    among = Captions(text=None, ids=pairs.ids, mask=pairs.mask, stored=pairs.stored)
    captions, caption_id, anchor_id = shards.fetch((among, pairs.caption_id, pairs.anchor_id), column)
    columns = Rows(x=jnp.zeros((found.shape[0], 0)), caption_id=caption_id, anchor_id=anchor_id, valid=found)
    return Negatives(place=place, captions=captions, columns=columns)


def from_bank(
    pairs: Pairs,
    own: Array,
    bank: Bank,
    policy: bns.PolicyFn,
    encode_text: Callable,
    key: Array,
    alpha: Array,
    groups: Groups,
    config: ObjectiveConfig,
    shards: Shards = ONE_DEVICE,
) -> tuple[Negatives, bns.Draw]:
    """Channel (b): every row draws one bank caption; for the rows whose draw scores highest it is encoded by the current tower.

    So the schedule chooses among rows too: at first those with the easiest draw, later those with the most ambiguous. Token ids
    come from the device that holds their slot. With config.bns.stale (an ablation) the bank's own, old embedding is used instead.
    """
    keys = bns.row_keys(key, jnp.arange(own.shape[0]))
    options = {"alpha": alpha, "config": config.bns, "paired": pairs.paired, "shards": shards}
    drawn = bns.sample(pairs.anchors(), bank.texts(), own, policy, keys, **options)
    score = drawn.perturbed.max(1).reshape(groups.count, groups.rows)
    place = shards.top_k(score, groups.share(config.bns.drawn_share))
    slot, found = groups.take(bns.hardest(drawn), place)
    among = Captions(text=None, ids=bank.ids, mask=bank.mask, stored=bank.stored)
    captions, caption_id, anchor_id = shards.fetch((among, bank.caption_id, bank.anchor_id), slot)
    if config.bns.stale:
        text = Features(pooled=shards.fetch(bank.text, slot), tokens=None)
    else:
        text = encoded(lambda part: encode_text(*part), captions.inputs(), shards)
    columns = Rows(x=text.pooled, caption_id=caption_id, anchor_id=anchor_id, valid=found)
    return Negatives(place=place, captions=dataclasses.replace(captions, text=text), columns=columns), drawn


def encoded(encode: Callable[[Any], Any], inputs: Any, shards: Shards) -> Any:
    """Features of `encode(inputs)` (one or several), without tokens where the batch is encoded in parts: they are the larger part."""
    if shards.parts == 1:
        return encode(inputs)
    pooled = lambda one: Features(pooled=one.pooled, tokens=None)  # noqa: E731
    return shards.in_parts(lambda part: jax.tree.map(pooled, encode(part), is_leaf=lambda x: isinstance(x, Features)), inputs)


def most_similar(pairs: Pairs, shards: Shards = ONE_DEVICE) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """For every row the most similar caption of the batch that is no positive, and whether there is one."""
    asked = jnp.zeros((pairs.ids.shape[0], 0), jnp.int32)
    s, column, _ = search(pairs.anchors(), pairs.texts(), asked, k=1, shards=shards)
    return column[:, 0], s[:, 0] > MASKED / 2


def local_terms(
    pairs: Pairs,
    drawn: Negatives,
    attend: Callable,
    encode_text: Callable,
    encode_anchor: Callable | None,
    groups: Groups,
    config: ObjectiveConfig,
    shards: Shards = ONE_DEVICE,
) -> tuple[Array, Array, Metrics]:
    """CLA on an even share of the rows that have a negative: attention to the own caption against that to the drawn negative.

    The matching loss also rejects the captions of the next `cla.easy` rows of the group: in a shuffled batch a uniform draw. With
    cla.into_towers = False all token features are cut from the gradient: the towers learn from the contrastive term alone.
    Token features that were not kept (shards.parts > 1) are encoded again, a part at a time.
    """
    have = drawn.place.shape[1]
    pick = even_rows(have, groups.share(config.cla.row_share, of=have))
    place = drawn.place[:, pick]
    negative = groups.take(drawn.captions, jnp.broadcast_to(pick, place.shape))
    found = groups.take(drawn.columns.valid, jnp.broadcast_to(pick, place.shape))
    own, *others = (groups.take(pairs, (place + n) % groups.rows) for n in range(config.cla.easy + 1))

    def compare(part: tuple[Pairs, list[Captions]]) -> tuple[Array, Array, Array]:
        """Of each row: L_local, whether its two captions can be aligned, and the matching logits of all captions."""
        pairs, captions = part
        anchor = pairs.anchor if encode_anchor is None or pairs.anchor.tokens is not None else encode_anchor(pairs.inputs)
        texts = [one.text if one.text is not None and one.text.tokens is not None else encode_text(*one.inputs()) for one in captions]
        if not config.cla.into_towers:
            anchor, texts = jax.lax.stop_gradient((anchor, texts))
        attention, logit = attend(jax.tree.map(lambda *x: jnp.stack(x), *texts), anchor)
        first, second = captions[:2]
        positive_a, negative_a, compared, aligned = cla.aligned_attention(
            first.ids, first.mask, attention[0], second.ids, second.mask, attention[1]
        )
        return cla.local_loss(positive_a, negative_a, compared, config.cla, shards), aligned, logit.T

    captions = [own.captions(), negative, *(other.captions() for other in others)]
    local, aligned, logit = shards.in_parts(compare, (own, captions))
    logit, use = logit.T, jnp.stack([found, *(~same_pair(own, other) for other in others)])
    if own.paired is not None:  # what is no pair has nothing to be told from
        use, found = use & own.paired[None], found & own.paired
    metrics = {
        "cla_unaligned": (found & ~aligned).mean(),
        "match_accuracy": jnp.where(found, logit[0] > logit[1], 0).sum() / jnp.maximum(found.sum(), 1),
    }
    return cla.mean_of(local, found & aligned), cla.match_loss(logit[0], logit[1:], use, own.paired), metrics


def _side(rows: Rows, draw: bns.Draw | None, k: int, paired: Array | None, present: Array | None = None) -> Side:
    """One side of the contrastive term; channel (a): the weights k q of its draw from the batch."""
    size = rows.x.shape[0]
    return Side(
        x=rows.x,
        caption_id=rows.caption_id,
        anchor_id=rows.anchor_id,
        candidate=jnp.zeros((size, 0), jnp.int32) if draw is None else draw.candidates.column,
        weight=jnp.zeros((size, 0)) if draw is None else k * draw.q,
        paired=paired,
        present=present,
    )


def bacl_loss(
    pairs: Pairs,
    bank: Bank | None,
    *,
    log_scale: Float[Array, ""],
    bias: Float[Array, ""] | None,
    policy: bns.PolicyFn,
    attend: Callable[[Features, Features], Any],
    encode_text: Callable[..., Features],
    encode_anchor: Callable[[Any], Features] | None = None,
    key: Array,
    progress: Float[Array, ""],
    config: ObjectiveConfig,
    shards: Shards = ONE_DEVICE,
) -> tuple[Float[Array, ""], Metrics]:
    """L = L_contrast + lambda_local L_local + lambda_match L_match + L_policy and its parts.

    policy, attend, encode_text are called only where the config switches on what needs them, encode_text on a caption's ids, mask and
    what is stored of it, encode_anchor (on pairs.inputs) where the anchors' tokens are not kept; attend takes several captions an
    anchor: text [N, B, T, C] and anchor [B, P, C] to A [N, B, T, P] and matching logits [N, B]. pairs and bank lie over the devices
    of `shards`, and so does every array with a dimension of the batch or of the bank: none of size B x B or B x M exists, but for
    config.contrast = "dense".
    """
    b, size = config.bns, pairs.ids.shape[0]
    groups = Groups.of(size, config.groups, shards)
    own = jax.lax.stop_gradient((pairs.anchor.pooled * pairs.text.pooled).sum(-1))  # s_ii
    metrics: Metrics = {}
    total = jnp.float32(0)

    weighted: list[bns.Draw] = []
    drawn = column = None
    if b.enabled:
        alpha = curriculum(progress, b)
        draws = []
        if b.reweight or b.stale or b.drawn_share == 0:
            draws = _sample(pairs, own, policy, jax.random.fold_in(key, 0), alpha, config, shards)
            column, weighted = bns.hardest(draws[0]), draws if b.reweight else []
        if b.drawn_share > 0:
            assert bank is not None
            where = jax.random.fold_in(key, 1)
            drawn, bank_side = from_bank(pairs, own, bank, policy, encode_text, where, alpha, groups, config, shards)
            draws = [*draws, bank_side]
        metrics["loss_policy"] = sum((bns.policy_loss(d, alpha=alpha, config=b) for d in draws), jnp.float32(0)) / len(draws)
        metrics |= {"alpha": alpha} | bns.diagnostics(draws[-1] if b.drawn_share > 0 else draws[0], b)
        total += metrics["loss_policy"]

    anchor_side, text_side = weighted or (None, None)
    contrast, least = contrastive_term(
        _side(pairs.anchors(), anchor_side, b.k, pairs.paired, pairs.present),
        _side(pairs.texts(), text_side, b.k, pairs.paired),
        jax.tree.map(lambda x: x[:0], pairs.texts()) if drawn is None else drawn.columns,
        scale=jnp.exp(log_scale),
        bias=bias,
        weight=pairs.weight,
        config=config,
        shards=shards,
    )
    metrics["loss_contrast"] = contrast
    if config.kind == "infonce":
        metrics |= {"loss_floor": least, "log_batch": jnp.log(jnp.float32(size))}
    total += contrast

    if config.cla.enabled:
        if drawn is None or b.stale:
            column = column or most_similar(pairs, shards)
            drawn = from_batch(pairs, *column, groups, config, shards)
        local, match, extra = local_terms(pairs, drawn, attend, encode_text, encode_anchor, groups, config, shards)
        metrics |= {"loss_local": local, "loss_match": match} | extra
        total += config.cla.lambda_local * local + config.cla.lambda_match * match
    return total, metrics | {"loss": total}
