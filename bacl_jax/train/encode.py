"""The towers over a batch: what the objective sees of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bacl_jax.config_objective import UnpairedConfig
from bacl_jax.models import Model
from bacl_jax.objective import unpaired
from bacl_jax.objective.bacl import Metrics, encoded
from bacl_jax.objective.bank import Bank, push
from bacl_jax.objective.bns import row_keys
from bacl_jax.objective.pairs import Pairs
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.types import Batch, Features, Tokens, Trunk


def encode(model: Model, params: dict[str, Any], batch: Batch, shards: Shards = ONE_DEVICE, anchor: Features | None = None) -> Pairs:
    """`encode_all` of a model with one anchor. anchor: what its tower made of the batch, where that was asked before."""
    (pairs,) = encode_all(model, params, batch, shards, anchors=None if anchor is None else {model.anchors[0]: anchor}).values()
    return pairs


def encode_all(
    model: Model,
    params: dict[str, Any],
    batch: Batch,
    shards: Shards = ONE_DEVICE,
    *,
    key: Array | None = None,
    anchors: Mapping[str, Features] | None = None,
) -> dict[str, Pairs]:
    """Of each anchor the pairs with the text, all towers over a batch once, in micro-batches where shards.parts > 1: then without token
    features. Stored trunks are not run.

    key: draws what is drawn of the inputs while training (SpecAugment), by global row; None: nothing is.
    """
    text, found = batch.inputs["text"], dict(anchors or {})
    given = {name: _given(model, batch, name, key) for name in model.anchors}
    stored = (batch.stored["text"],) if "text" in batch.stored else ()
    assert text.mask is not None

    def towers(part: tuple[dict[str, Any], tuple[Any, ...]]) -> tuple[dict[str, Features], Features]:
        given, texts = part
        seen = {name: anchor_features(model, params, name, one) for name, one in given.items()}
        return shards.by_batch((seen, text_features(model, params, *texts)))

    texts = (text.values, text.mask, *stored)
    seen, told = encoded(towers, ({name: one for name, one in given.items() if name not in found}, texts), shards)
    return {
        name: _pairs(batch, {**found, **seen}[name], told, None if shards.parts == 1 else given[name], stored, _present(model, batch, name))
        for name in model.anchors
    }


def _given(model: Model, batch: Batch, name: str, key: Array | None) -> Any:
    """What an anchor's tower takes: its prepared input, or what is stored of its trunk."""
    if name in batch.stored:
        return batch.stored[name]
    keys = None if key is None else row_keys(key, jnp.arange(batch.index.shape[0]))
    return model.prepare(name, batch.inputs[name], keys)


def _present(model: Model, batch: Batch, name: str) -> Array | None:
    """Where several anchors are asked for, a row may lack one."""
    return batch.present[name] if len(model.anchors) > 1 else None


def _pairs(batch: Batch, anchor: Features, text: Features, given: Any, stored: tuple[Any, ...], present: Array | None) -> Pairs:
    ids = batch.inputs["text"]
    assert ids.mask is not None
    paired = batch.paired if present is None else present
    return Pairs(
        anchor=anchor,
        text=text,
        ids=ids.values,
        mask=ids.mask,
        caption_id=batch.caption_id,
        anchor_id=batch.anchor_id,
        inputs=given,
        stored=stored,
        paired=paired,
        weight=None if paired is None else paired.astype(jnp.float32),
        present=present,
        given=batch.paired,
    )


def encode_with_partners(
    model: Model, params: dict[str, Any], batch: Batch, bank: Bank, progress: Array, config: UnpairedConfig, shards: Shards = ONE_DEVICE
) -> tuple[Pairs, dict[str, Any], Metrics]:
    """`encode`, with their probable captions beside the pictures that stand alone; what the bank keeps; what is logged of these.

    The captions that came with the batch are encoded first, without gradient: the bank keeps them, whether or not another takes their
    place beside a picture, and they are candidates with the rest of the bank. So every caption that stands alone is there to be found.
    """
    assert batch.paired is not None
    text = batch.inputs["text"]
    anchor = encoded(lambda given: shards.by_batch(anchor_features(model, params, "image", given)), batch.inputs["image"].values, shards)
    kept = encode(model, params, batch, shards, anchor).to_keep()
    seen = push(bank, write=jnp.bool_(True), shards=shards, index=batch.index, **kept)
    partners = unpaired.find(anchor.pooled, batch.anchor_id, batch.paired, seen, progress, config=config, shards=shards)
    found = shards.fetch((seen.ids, seen.mask, seen.caption_id), partners.slot)
    accept = lambda new, old: jnp.where(partners.accepted[:, None], new, old)  # noqa: E731
    ids, mask, caption_id = jax.tree.map(accept, found, (text.values, text.mask, batch.caption_id))
    told = dataclasses.replace(batch, inputs=batch.inputs | {"text": Tokens(values=ids, mask=mask)}, caption_id=caption_id)
    weight = jnp.where(partners.accepted, config.weight * partners.likely, batch.paired)
    pairs = dataclasses.replace(encode(model, params, told, shards, anchor), paired=weight > 0, weight=weight)
    return pairs, kept, unpaired.diagnostics(partners, batch.paired, found[2], batch.truth)


def anchor_features(model: Model, params: dict[str, Any], name: str, given: Any) -> Features:
    """The tower of an anchor over its prepared input, or its head over what its trunk made of that."""
    if isinstance(given, Trunk):
        return model.finish_image(params, in_dtype(model, given))
    return model.encode_anchor(params, name, given)


def text_features(model: Model, params: dict[str, Any], ids: Array, mask: Array, stored: Trunk | None = None) -> Features:
    """The text tower over token ids, or its head over what its trunk made of them."""
    if stored is not None:
        return model.finish_text(params, in_dtype(model, stored), mask)
    return model.encode_text(params, ids, mask)


def in_dtype(model: Model, stored: Trunk) -> Trunk:
    """Stored features in the type that the model computes in."""
    return jax.tree.map(lambda x: x.astype(model.config.model.dtype), stored)
