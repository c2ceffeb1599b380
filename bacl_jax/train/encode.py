"""Both towers over a batch: what the objective sees of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bacl_jax.config_objective import UnpairedConfig
from bacl_jax.models import Model
from bacl_jax.objective import unpaired
from bacl_jax.objective.bacl import Metrics, encoded
from bacl_jax.objective.bank import Bank, push
from bacl_jax.objective.pairs import Pairs
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.types import Batch, Features, Tokens, Trunk


def encode(model: Model, params: dict[str, Any], batch: Batch, shards: Shards = ONE_DEVICE, anchor: Features | None = None) -> Pairs:
    """Both towers over a batch, in micro-batches where shards.parts > 1: then without token features. Stored trunks are not run.

    anchor: what the image tower made of the batch, where that was asked before.
    """
    text = batch.inputs["text"]
    given = batch.stored["image"] if "image" in batch.stored else batch.inputs["image"].values
    stored = (batch.stored["text"],) if "text" in batch.stored else ()
    assert text.mask is not None

    def towers(part: tuple[Any, tuple[Any, ...]]) -> tuple[Features, Features]:
        given, texts = part
        return shards.by_batch((image_features(model, params, given), text_features(model, params, *texts)))

    texts = (text.values, text.mask, *stored)
    if anchor is None:
        features = encoded(towers, (given, texts), shards)
    else:
        features = anchor, encoded(lambda texts: shards.by_batch(text_features(model, params, *texts)), texts, shards)
    return Pairs(
        anchor=features[0],
        text=features[1],
        ids=text.values,
        mask=text.mask,
        caption_id=batch.caption_id,
        anchor_id=batch.anchor_id,
        inputs=None if shards.parts == 1 else given,
        stored=stored,
        paired=batch.paired,
        weight=None if batch.paired is None else batch.paired.astype(jnp.float32),
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
    anchor = encoded(lambda given: shards.by_batch(image_features(model, params, given)), batch.inputs["image"].values, shards)
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


def image_features(model: Model, params: dict[str, Any], given: Any) -> Features:
    """The image tower over pictures, or its head over what its trunk made of them."""
    if isinstance(given, Trunk):
        return model.finish_image(params, in_dtype(model, given))
    return model.encode_image(params, given)


def text_features(model: Model, params: dict[str, Any], ids: Array, mask: Array, stored: Trunk | None = None) -> Features:
    """The text tower over token ids, or its head over what its trunk made of them."""
    if stored is not None:
        return model.finish_text(params, in_dtype(model, stored), mask)
    return model.encode_text(params, ids, mask)


def in_dtype(model: Model, stored: Trunk) -> Trunk:
    """Stored features in the type that the model computes in."""
    return jax.tree.map(lambda x: x.astype(model.config.model.dtype), stored)
