"""The loss of a step: the towers over a batch, then one BACL term for each anchor, with its bank. What the banks keep of the step."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bacl_jax import schedules
from bacl_jax.config import Config
from bacl_jax.models import Model
from bacl_jax.models.heads import ALONE
from bacl_jax.objective import bank as memory
from bacl_jax.objective.bacl import Metrics, bacl_loss
from bacl_jax.objective.bank import Bank
from bacl_jax.objective.pairs import Pairs
from bacl_jax.objective.shards import Shards
from bacl_jax.train.encode import anchor_features, encode_all, encode_with_partners, text_features
from bacl_jax.train.state import TrainState
from bacl_jax.types import Batch

Banks = Bank | dict[str, Bank]  # one, or of several anchors one each
SPEC_AUGMENT = 3  # stream of a step's key, beside those of the objective


def step_loss(
    model: Model, params: dict[str, Any], state: TrainState, batch: Batch, config: Config, shards: Shards
) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, Any]]]:
    """sum_a objective.weights[a] L(a, text), metrics, and what the bank keeps (of several anchors by name).

    Metrics of one of several anchors have its name before theirs. params: whole along fsdp.
    """
    objective, progress = config.objective, schedules.progress(state.step, config.train.steps)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    if isinstance(state.bank, dict):
        drawn = jax.random.fold_in(key, SPEC_AUGMENT) if "audio" in model.anchors else None
        total, metrics, kept = jnp.float32(0), {}, {}
        for number, (name, pairs) in enumerate(encode_all(model, params, batch, shards, key=drawn).items()):
            each = jax.random.fold_in(key, number)
            loss, found = term(model, params, pairs, state.bank[name], each, progress, config, shards, anchor=name, of=name)
            total += objective.weights[number] * loss
            metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
            metrics[f"{name}/present"] = batch.present[name].mean()
            kept[name] = pairs.to_keep()
        return total, (metrics | {"loss": total}, kept)
    (anchor,), beside = model.anchors, {}
    if objective.unpaired.enabled:
        pairs, kept, beside = encode_with_partners(model, params, batch, state.bank, progress, objective.unpaired, shards)
    else:
        drawn = jax.random.fold_in(key, SPEC_AUGMENT) if anchor == "audio" else None
        pairs = encode_all(model, params, batch, shards, key=drawn)[anchor]
        kept = pairs.to_keep(stored=bool(state.bank.stored))
    loss, metrics = term(model, params, pairs, state.bank, key, progress, config, shards, anchor=anchor, of=ALONE)
    return loss, (metrics | beside, kept)


def term(
    model: Model,
    params: dict[str, Any],
    pairs: Pairs,
    bank: Bank,
    key: Array,
    progress: Array,
    config: Config,
    shards: Shards,
    *,
    anchor: str,
    of: str,
) -> tuple[Float[Array, ""], Metrics]:
    """L(anchor, text): the objective of one anchor's pairs. of: where its heads lie among the parameters."""
    by_batch = shards.by_batch
    return bacl_loss(
        pairs,
        bank,
        log_scale=params["log_scale"],
        bias=params.get("bias"),
        policy=lambda *args: model.policy(params, *args, of=of),
        attend=lambda text, seen: by_batch(model.attend_each(params, by_batch(text, axis=1), by_batch(seen), of), axis=1),
        encode_text=lambda *args: by_batch(text_features(model, params, *by_batch(args))),
        encode_anchor=lambda given: by_batch(anchor_features(model, params, anchor, by_batch(given))),
        key=key,
        progress=progress,
        config=config.objective,
        shards=shards,
    )


def empty_banks(config: Config, stored: tuple[Any, ...]) -> Banks:
    """The bank of a fresh state; of several anchors one each. stored: as in objective/bank.py:empty."""

    def one() -> Bank:
        unpaired = config.data.unpaired_share > 0
        return memory.empty(config.objective.bank_size, config.data.context_length, config.model.embed_dim, stored, unpaired=unpaired)

    anchors = config.data.anchors
    return one() if len(anchors) == 1 else {name: one() for name in anchors}


def pushed(banks: Banks, kept: dict[str, Any], batch: Batch, *, write: Bool[Array, ""], shards: Shards) -> Banks:
    """The banks with the rows of the step. A slot whose row lacks the anchor stays empty."""
    if isinstance(banks, Bank):
        return memory.push(banks, write=write, shards=shards, index=batch.index, **kept)
    return {
        name: memory.push(one, write=write, shards=shards, index=jnp.where(batch.present[name], batch.index, -1), **kept[name])
        for name, one in banks.items()
    }
