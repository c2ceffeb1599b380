"""What must hold between the fields of a config, which `bacl_jax.config.from_config_dict` asks, and between them and the devices."""

import math
import string
from collections.abc import Iterator
from typing import Any

from bacl_jax.settings import ConfigError

Rule = tuple[bool, str, str]  # (whether it holds, the field to blame, what it must be)
HAS = {"stamps": ("image", "audio"), "sprites": ("video",)}  # anchors that the rows of a kind have, others: ("image",)


def rules(config: Any) -> Iterator[Rule]:
    """Every rule for a `bacl_jax.config.Config`. Raises ConfigError for one that is about no single field's value."""
    yield from _data_rules(config)
    yield from _model_rules(config)
    yield from _objective_rules(config)
    yield from _unpaired_rules(config)
    yield from _anchor_rules(config)
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


def _anchor_rules(config: Any) -> Iterator[Rule]:
    """What goes with sound, video and several anchors."""
    data, objective, anchors = config.data, config.objective, config.data.anchors
    audio, tower = data.audio, config.model.audio
    has = HAS.get(data.kind, ("image",))
    if data.kind == "clips":
        has = tuple(name for name in ("image", "audio", "video") if getattr(data.clips, name) is not None)
        for name in has:
            pattern = getattr(data.clips, name)
            yield (
                is_pattern(pattern),
                f"data.clips.{name}",
                "must name at least one column in braces and nothing else in them, as in {id}.wav",
            )
    alone, why = anchors == ("image",), "where data.anchors is not ('image',)"
    yield len(anchors) > 0 and len({*anchors}) == len(anchors), "data.anchors", "must name at least one anchor, and none twice"
    yield {*anchors} <= {*has}, "data.anchors", f"must be of those that the rows have, {has or 'none'}, where data.kind is {data.kind}"
    yield len(objective.weights) == len(anchors), "objective.weights", f"must be as many as data.anchors = {anchors}"
    best = config.train.keep_best or ""
    ways = tuple(f"{name[0]}2t" for name in anchors)
    yield (
        best[:3] in ("", *ways, *("t2i" for name in anchors if name == "image")),
        "train.keep_best",
        f"must be None or begin with one of {', '.join(ways)} where data.anchors = {anchors}",
    )
    yield alone or not config.eval.rerank, "eval.rerank", f"must be 0 {why}: pictures are re-ordered"
    yield alone or data.features is None, "data.features", f"must be None {why}: features are stored of pictures and texts"
    yield alone or not config.optim.spectral.enabled, "optim.spectral.enabled", f"must be False {why}"
    yield (
        len(anchors) == 1 or not objective.bns.draws_partners,
        "objective.bns.partner_share",
        "must be 0 where there are several anchors: partners are of one bank, and each anchor has its own",
    )
    if "audio" in anchors:
        yield from _audio_rules(audio)
        yield tower.width % tower.heads == 0, "model.audio.heads", f"must divide model.audio.width = {tower.width}"
        yield tower.patch_frames <= audio.frames, "model.audio.patch_frames", f"must be <= {audio.frames}, the frames of data.audio.seconds"
        yield tower.patch_bins <= audio.mel_bins, "model.audio.patch_bins", f"must be <= data.audio.mel_bins = {audio.mel_bins}"
        for name, size in (("frames", audio.frames), ("bins", audio.mel_bins)):
            patch, stride = getattr(tower, f"patch_{name}"), getattr(tower, f"stride_{name}")
            yield (
                stride <= patch or patch == size,
                f"model.audio.stride_{name}",
                f"must be <= model.audio.patch_{name} = {patch}, else {name} are passed over",
            )
    if "video" in anchors:
        video, most = data.video, data.video.max_frames
        yield video.frames <= most, "data.video.frames", f"must be <= data.video.max_frames = {most}, the longest clip"
        yield (
            not config.model.video.depth or config.model.embed_dim % config.model.video.heads == 0,
            "model.video.heads",
            f"must divide model.embed_dim = {config.model.embed_dim}",
        )


def _audio_rules(audio: Any) -> Iterator[Rule]:
    yield (
        audio.seconds <= audio.max_seconds,
        "data.audio.seconds",
        f"must be <= data.audio.max_seconds = {audio.max_seconds}, the longest sound",
    )
    yield audio.samples >= audio.window, "data.audio.seconds", f"must hold a frame: data.audio.window = {audio.window} samples"
    yield audio.hop <= audio.window, "data.audio.hop", f"must be <= data.audio.window = {audio.window}, else samples are passed over"
    bins = audio.window // 2
    yield audio.mel_bins <= bins, "data.audio.mel_bins", f"must be <= {bins}, half of data.audio.window, else bands are empty"
    yield audio.bin_width <= audio.mel_bins, "data.audio.bin_width", f"must be <= data.audio.mel_bins = {audio.mel_bins}"


def is_pattern(pattern: str) -> bool:
    """Whether it can name a row's file: columns in braces, at least one, and no conversion or format with them."""
    try:
        fields = [field for field in string.Formatter().parse(pattern) if field[1] is not None]
    except ValueError:
        return False
    return bool(fields) and all(name and not {*name} & {*".[]"} and not form and not conversion for _, name, form, conversion in fields)


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
