"""BACL in somebody else's trainer: BNS and CLA (arXiv 2511.08399) over the features of any two towers.

The trainer keeps its towers, temperature, data, optimiser and loop. Where its contrastive loss stood, it calls `loss`, inside the
function that it differentiates and under `jax.jit`, over the whole batch (not inside shard_map or pmap):

    params, state = addon.init(key, addon.Dims(embed=512, context=77, text_width=512, anchor_width=768), config)
    features = addon.Features(z=z, w=w, ids=ids, mask=mask, X=patches, Y=words, log_scale=..., encode_text=..., ...)
    loss, state, metrics = addon.loss(params, state, features, rng, progress, config=config)

`params` belong into what is differentiated, beside the trainer's own; `state` goes in as it is and comes out as an auxiliary result.
Both are pytrees of arrays that any checkpoint keeps. The step's result is a function of the arguments alone: resume with the same
`rng` of a step, and it is the same.

Beside the towers' learning rate there are two, one optimiser in all, for instance by `optax.multi_transform`:
    params["cross_attention"]  AdamW with the towers' schedule and weight decay, peak 1e-3 (`optim.cross_lr`; our towers have 4e-3).
    params["policy"]           Adam at a constant 1e-3 (`optim.policy_lr`), no decay: its loss is another than the towers', whose features
                               it sees without gradient.
Clip each group by its own norm (ours at 1): one norm over all lets the gradient of one group shrink the towers' updates.

Dimensions as in types.py, with E captions to encode. Equations: objective/bacl.py; which are the paper's is in docs/method.md.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from bacl_jax import types
from bacl_jax.addon_features import LAYOUT, Dims, Features, check, expect
from bacl_jax.config import ConfigError, from_config_dict, to_dict
from bacl_jax.config_objective import BNSConfig, CLAConfig, ObjectiveConfig
from bacl_jax.data.source import hash_ids, normalise
from bacl_jax.models import Heads
from bacl_jax.models.layers import l2_normalise
from bacl_jax.objective import bank as memory
from bacl_jax.objective.bacl import Metrics, bacl_loss
from bacl_jax.objective.bank import Bank
from bacl_jax.objective.contrast import check_tiles
from bacl_jax.objective.pairs import Pairs
from bacl_jax.objective.shards import Shards
from bacl_jax.types import AnyArray

__all__ = ["BNSConfig", "CLAConfig", "Dims", "Features", "ObjectiveConfig", "anchor_ids", "caption_ids", "init", "loss"]


def caption_ids(captions: Iterable[str]) -> AnyArray:
    """uint32 [B, 2], on the host: 64-bit hashes of captions in normal form (Unicode NFC, lower case, single spaces)."""
    return hash_ids(map(normalise, captions))


def anchor_ids(keys: Iterable[str]) -> AnyArray:
    """uint32 [B, 2], on the host: 64-bit hashes of what names each anchor in its source, such as a path; unchanged over epochs."""
    return hash_ids(keys)


def init(key: Array, dims: Dims, config: ObjectiveConfig, *, mesh: Mesh | None = None) -> tuple[dict[str, Any], Bank]:
    """(params, state): fresh float32 parameters of what the config switches on, and an empty memory bank.

    The bank has config.bank_size slots of 8 D + 5 T + 20 bytes; with a mesh they lie over all of its devices. Raises ConfigError for
    settings that are out of range or contradict each other, and for the partners of channel (c), which change a trainer's data.
    """
    _check_config(config, config.bns.pool)
    if config.cla.enabled and not (dims.text_width and dims.anchor_width):
        raise ConfigError(f"{dims}: CLA needs the widths of Y and X, both >= 1; set them, or cla.enabled = False")
    params = _heads(dims, config, jnp.float32).init(key)
    state = memory.empty(config.bank_size, dims.context, dims.embed)
    if mesh is None:
        return params, state
    if config.bank_size % mesh.size:
        raise ConfigError(f"config.bank_size = {config.bank_size}: must be divisible by the {mesh.size} devices of the mesh")
    put = lambda x, *over: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*over)))  # noqa: E731
    return jax.tree.map(put, params), jax.tree.map(lambda x: put(x, mesh.axis_names) if x.ndim else put(x), state)


def loss(
    params: dict[str, Any],
    state: Bank,
    features: Features,
    rng: Array,
    progress: Float[Array, ""] | float,
    *,
    config: ObjectiveConfig,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], Bank, Metrics]:
    """(L, the state after the batch, metrics): L = L_contrast + lambda_local L_local + lambda_match L_match + L_policy, in nats.

    The contrastive term is in it: it stands in the place of the trainer's own. rng: another key each step; progress in [0, 1]: the share
    of training that is done, which moves the curriculum. metrics: float32 scalars, described in docs/method.md. A batch whose loss is
    not finite does not enter the bank. Memory and work: as in objective/contrast.py, and O(B bank_size D) for channel (b).

    mesh: the devices over which batch and bank lie, axes of any names but of type Auto; collectives are then few and explicit. None: one
    device, or what the compiler makes of the arguments' shardings. Raises ValueError, when traced, for features of another shape or type
    than `init` was told (field, found, expected), and for rows that do not divide over the devices.
    """
    if mesh is not None and set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(
            f"mesh axes {dict(zip(mesh.axis_names, mesh.axis_types, strict=True))}: must be Auto; set jax.make_mesh's axis_types"
        )
    shards = Shards(mesh, config.tile)
    sizes = check(params, state, features, config)
    _check_config(config, sizes["B"])
    check_tiles(config, sizes["B"], shards.count)
    dims = Dims(embed=sizes["D"], context=sizes["T"], text_width=sizes.get("Ct", 0), anchor_width=sizes.get("Ca", 0))
    f = dataclasses.replace(features, **{name: jnp.asarray(x) for name in LAYOUT if (x := getattr(features, name)) is not None})
    heads = _heads(dims, config, f.Y.dtype if config.cla.enabled else jnp.float32)

    def encode_text(ids: Array, mask: Array) -> types.Features:
        assert f.encode_text is not None
        w, y = f.encode_text(ids, mask)
        here = sizes | {"E": ids.shape[0]}
        expect("w of features.encode_text", w, jnp.floating, "E D", here)
        if config.cla.enabled:
            expect("Y of features.encode_text", y, jnp.floating, "E T Ct", here)
        return types.Features(pooled=l2_normalise(w), tokens=y if config.cla.enabled else None, mask=mask)

    pairs = Pairs(
        anchor=types.Features(pooled=l2_normalise(f.z), tokens=f.X, mask=f.X_mask),
        text=types.Features(pooled=l2_normalise(f.w), tokens=f.Y, mask=f.mask),
        ids=f.ids,
        mask=f.mask,
        caption_id=f.caption_id,
        anchor_id=f.anchor_id,
    )
    total, metrics = bacl_loss(
        pairs,
        state,
        log_scale=f.log_scale,
        bias=f.bias,
        policy=lambda *args: heads.policy(params, *args),
        attend=lambda text, anchor: heads.attend_each(params, text, anchor),
        encode_text=encode_text,
        key=rng,
        progress=jnp.asarray(progress, jnp.float32),
        config=config,
        shards=shards,
    )
    index = jnp.zeros(sizes["B"], jnp.int32)  # rows of a source matter to channel (c) alone; here a slot is filled or not
    kept = memory.push(state, write=jnp.isfinite(total), shards=shards, index=index, **pairs.to_keep())
    return total, kept, jax.lax.stop_gradient(metrics)


def _heads(dims: Dims, config: ObjectiveConfig, dtype: Any) -> Heads:
    return Heads(config, dims.embed, dims.text_width, dims.anchor_width, dtype=dtype)


def _check_config(config: ObjectiveConfig, batch: int) -> None:
    """ConfigError where a run with this objective and so large a batch would be refused, or draws partners."""
    if config.bns.draws_partners:
        raise ConfigError(
            f"config.bns.partner_share = {config.bns.partner_share}: must be 0, the partners of channel (c) need our data order"
        )
    try:
        from_config_dict({"objective": to_dict(config), "train": {"batch_size": batch}})
    except ConfigError as error:
        raise ConfigError(str(error).replace("objective.", "").partition("; set it with")[0]) from None
