"""What must hold between the fields of a config where there are sounds, clips or several anchors. See rules.py."""

import string
from collections.abc import Iterator
from typing import Any

from bacl_jax.settings import Rule

HAS = {"stamps": ("image", "audio"), "sprites": ("video",)}  # anchors that the rows of a kind have, others: ("image",)


def media_rules(config: Any) -> Iterator[Rule]:
    """What goes with sound, video and several anchors."""
    data, objective, anchors = config.data, config.objective, config.data.anchors
    audio, tower = data.audio, config.model.audio
    has = HAS.get(data.kind, ("image",))
    if data.kind == "clips":
        has = tuple(name for name in ("image", "audio", "video") if getattr(data.clips, name) is not None)
        for name in has:
            pattern = getattr(data.clips, name)
            yield (
                _is_pattern(pattern),
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


def _is_pattern(pattern: str) -> bool:
    """Whether it can name a row's file: columns in braces, at least one, and no conversion or format with them."""
    try:
        fields = [field for field in string.Formatter().parse(pattern) if field[1] is not None]
    except ValueError:
        return False
    return bool(fields) and all(name and not {*name} & {*".[]"} and not form and not conversion for _, name, form, conversion in fields)
