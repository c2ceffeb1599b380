"""What must hold between the fields of a config, which `bacl_jax.config.from_config_dict` asks, and between them and the devices."""

import math
from collections.abc import Iterator
from typing import Any

from bacl_jax.rules_media import media_rules
from bacl_jax.settings import ConfigError, Rule


def rules(config: Any) -> Iterator[Rule]:
    """Every rule for a `bacl_jax.config.Config`. Raises ConfigError for one that is about no single field's value."""
    yield from _data_rules(config)
    yield from _model_rules(config)
    yield from _objective_rules(config)
    yield from _unpaired_rules(config)
    yield from media_rules(config)
    yield from _train_rules(config)


def _data_rules(config: Any) -> Iterator[Rule]:
    data = config.data
    yield (
        data.kind != "manifest" or data.path is not None,
        "data.path",
        "must name a CSV, JSONL or Parquet file where data.kind is manifest",
    )
    yield (
        data.kind in ("emoji", "manifest", "mixture", "stamps", "sprites") or data.path is not None,
        "data.path",
        f"must name the files, or the data set, where data.kind is {data.kind}",
    )
    yield (
        data.train_rows is None or (data.kind != "mixture" and data.unpaired_share == 0),
        "data.train_rows",
        "must be None where data.kind is mixture or data.unpaired_share is above 0: it is a number of pairs of one source",
    )
    if data.kind == "mixture" and not data.sources:
        raise ConfigError(
            "config.data.sources = (): must name at least one source where data.kind is mixture; set it in --config.data.sources=..."
        )
    if data.kind != "mixture" and data.sources:
        raise ConfigError(
            f"config.data.sources, {len(data.sources)} sources: must be empty where data.kind is {data.kind}; or set data.kind=mixture"
        )
    for number, source in enumerate(data.sources):
        field = f"data.sources[{number}]"
        yield (
            source.kind == "emoji" or source.path is not None,
            f"{field}.path",
            f"must name the files, or the data set, of kind {source.kind}",
        )
        name = data.source_names()[number]
        yield data.source_names().count(name) == 1, f"{field}.name", f"{name} is the name of another source, too; each needs its own"
        yield "/" not in name, f"{field}.name", "must be a name without /"
    yield (
        data.tokenizer != "file" or data.tokenizer_path is not None,
        "data.tokenizer_path",
        "must name a tokenizer.json, CLIP's bpe_simple_vocab_16e6.txt.gz or a vocab.txt where data.tokenizer is file",
    )
    yield (
        data.tokenizer == "file" or data.tokenizer_path is None,
        "data.tokenizer_path",
        f"must be None where data.tokenizer is {data.tokenizer}: it is read where that is file",
    )
    yield (
        len(data.augment_area) == 2 and 0 < data.augment_area[0] <= data.augment_area[-1] <= 1,
        "data.augment_area",
        "must be two numbers, 0 < least <= largest <= 1",
    )
    yield (
        len(data.augment_ratio) == 2 and 0 < data.augment_ratio[0] <= data.augment_ratio[-1],
        "data.augment_ratio",
        "must be two numbers, 0 < least <= largest",
    )
    yield len(data.vendors) > 0, "data.vendors", "must name at least one vendor"
    yield (
        data.holdout != "vendor" or set(data.vendors) > set(data.holdout_vendors) > set(),
        "data.holdout_vendors",
        f"must be some, not all, of data.vendors = {data.vendors}",
    )


def _model_rules(config: Any) -> Iterator[Rule]:
    data, model, cla = config.data, config.model, config.objective.cla
    yield data.image_size % model.image.patch == 0, "model.image.patch", f"must divide data.image_size = {data.image_size}"
    yield model.text.width % model.text.heads == 0, "model.text.heads", f"must divide model.text.width = {model.text.width}"
    yield (
        model.image.kind != "vit" or model.image.width % model.image.heads == 0,
        "model.image.heads",
        f"must divide model.image.width = {model.image.width}",
    )
    yield cla.width % cla.heads == 0, "objective.cla.heads", f"must divide objective.cla.width = {cla.width}"
    for name, heads, there in (
        ("model.image.heads", model.image.heads, model.image.kind == "vit"),
        ("model.text.heads", model.text.heads, True),
        ("objective.cla.heads", cla.heads, cla.enabled),
    ):
        yield not there or heads % config.mesh.tensor == 0, "mesh.tensor", f"must divide {name} = {heads}"


def _objective_rules(config: Any) -> Iterator[Rule]:
    objective, bns, readers = config.objective, config.objective.bns, config.data.prefetch + config.data.threads
    capacity = objective.bank_size + config.train.batch_size
    partners = bns.draws_partners
    yield objective.init_scale <= objective.max_scale, "objective.init_scale", f"must be <= objective.max_scale = {objective.max_scale}"
    yield bns.pool >= bns.k, "objective.bns.pool", f"must be >= objective.bns.k = {bns.k}"
    yield (
        not bns.enabled or bns.pool <= capacity,
        "objective.bns.pool",
        f"must be <= objective.bank_size + train.batch_size = {capacity}, the candidates there are",
    )
    yield (
        not partners or bns.partner_k <= objective.bank_size,
        "objective.bns.partner_k",
        f"must be <= objective.bank_size = {objective.bank_size}",
    )
    yield (
        not partners or bns.list_delay > readers,
        "objective.bns.list_delay",
        f"must be > data.prefetch + data.threads = {readers}, else a batch is read before the partner list that it needs exists",
    )
    yield (
        objective.kind != "mmcl" or objective.same_id == "mask",
        "objective.same_id",
        "must be mask where objective.kind is mmcl: the pair itself is its one positive",
    )
    yield (
        objective.cla.stop_gradient != "all" or objective.cla.beta == 0,
        "objective.cla.beta",
        "must be 0 where objective.cla.stop_gradient is all: it has no effect there",
    )


def _unpaired_rules(config: Any) -> Iterator[Rule]:
    """What rows that lack a modality cannot be used with."""
    data, objective = config.data, config.objective
    yield (
        data.unpaired_share == 0 or data.kind == "manifest",
        "data.unpaired_share",
        f"must be 0 where data.kind is {data.kind}: a manifest alone has rows that lack a caption or an image",
    )
    yield (
        data.unpaired_share == 0 or data.features is None,
        "data.features",
        "must be None where data.unpaired_share is above 0: features are stored of complete pairs",
    )
    yield (
        not objective.bns.draws_partners or data.unpaired_share == 0,
        "objective.bns.partner_share",
        "must be 0 where data.unpaired_share is above 0: partners of channel (c) are complete pairs",
    )
    yield (
        not objective.unpaired.enabled or data.unpaired_share > 0,
        "objective.unpaired.enabled",
        "must be False where data.unpaired_share is 0: no row lacks a modality",
    )
    yield (
        data.unpaired_share == 0 or not config.optim.spectral.enabled,
        "optim.spectral.enabled",
        "must be False where data.unpaired_share is above 0: the heads would begin from pictures and captions that are no pairs",
    )


def _train_rules(config: Any) -> Iterator[Rule]:
    train = config.train
    yield config.mesh.data != 0, "mesh.data", "must be -1, the devices that remain, or at least 1"
    yield config.optim.warmup_steps < train.steps, "optim.warmup_steps", f"must be < train.steps = {train.steps}"
    yield (
        train.keep_best is None or "retrieval" in config.eval.tasks,
        "eval.tasks",
        f"must hold retrieval, which gives train.keep_best = {train.keep_best}",
    )
    cla = config.objective.cla
    yield (
        not config.eval.rerank or (cla.enabled and cla.lambda_match > 0),
        "eval.rerank",
        "must be 0 where objective.cla is not enabled or objective.cla.lambda_match is 0: no cross-modal head is trained then",
    )
    yield len(config.eval.probe.weights) > 0, "eval.probe.weights", "must name at least one weight of the L2 term"


def mesh_sizes(mesh: Any, devices: int) -> tuple[int, int, int]:
    """Devices along data, fsdp and tensor. mesh.data = -1 takes the devices that fsdp and tensor leave.

    Raises ConfigError where the sizes do not multiply to the number of devices.
    """
    inner = mesh.fsdp * mesh.tensor
    if inner < 1 or devices % inner:
        raise ConfigError(
            f"mesh.fsdp {mesh.fsdp} x mesh.tensor {mesh.tensor} = {inner} does not divide the {devices} devices: change one of them"
        )
    data = devices // inner if mesh.data == -1 else mesh.data
    if data * inner != devices:
        raise ConfigError(
            f"mesh.data {mesh.data} x mesh.fsdp {mesh.fsdp} x mesh.tensor {mesh.tensor} = {data * inner}, "
            f"but there are {devices} devices: set mesh.data to -1 or {devices // inner}"
        )
    return data, mesh.fsdp, mesh.tensor


def check_divides(devices: int, config: Any) -> None:
    """Raises ConfigError unless batch and bank divide over the devices: the loss spreads them over all three axes."""
    parts = config.train.micro_batches
    groups = math.lcm(config.objective.groups, devices * parts)
    of = f"the {devices} devices"
    if groups != devices:
        of = f"{groups} (objective.groups {config.objective.groups}, {devices} devices, train.micro_batches {parts})"
    for name, size, by, what in (
        ("train.batch_size", config.train.batch_size, groups, of),
        ("objective.bank_size", config.objective.bank_size, devices, f"the {devices} devices"),
    ):
        if size % by:
            lower = size // by * by
            raise ConfigError(f"{name} {size} does not divide over {what}: use {f'{lower} or ' if lower else ''}{lower + by}")


def check_pictures(config: Any, what: str, *, alone: bool = False) -> None:
    """Raises ConfigError unless pictures are among data.anchors; alone: unless they are all of them. what: needs them."""
    anchors = config.data.anchors
    if "image" not in anchors or (alone and len(anchors) > 1):
        must = "be ('image',)" if alone else "contain 'image'"
        raise ConfigError(f"config.data.anchors = {anchors}: must {must} for {what}")
