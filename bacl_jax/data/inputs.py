"""From an example to what the towers of its anchors take: a cropped picture, a sound of one length, frames of a clip.

Dimension legend: B rows, S pixels a side, N samples, L log-mel frames, F frames of a clip.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bacl_jax.config import DataConfig
from bacl_jax.config_media import AudioDataConfig
from bacl_jax.data import audio, transforms
from bacl_jax.data.source import Clip, Example, Sound
from bacl_jax.errors import DataError
from bacl_jax.types import Tokens


class Input(NamedTuple):
    """What a tower takes of one row; mask: as in Tokens, of sound alone."""

    values: Any
    mask: Any = None


def is_lacking(error: DataError, config: DataConfig) -> bool:
    """Whether the row lacks this anchor rather than being bad: of several, the file has no such track (a clip without sound)."""
    return error.kind == "no_track" and len(config.anchors) > 1


Make = Callable[[tuple[int, ...], Any], Any]  # of a shape and a type an array, or what stands for one


def draws(config: DataConfig) -> int:
    """Numbers in [0, 1) that `of` needs of a row: one for its sound, one for each frame, one for the sound's speed where it changes; of
    pictures alone none."""
    return 0 if config.anchors == ("image",) else 1 + config.video.frames + (config.audio.speed > 0)


def of(
    example: Example, config: DataConfig, where: transforms.Place, drawn: Sequence[float], *, only: str | None = None
) -> dict[str, Input]:
    """The inputs of those of data.anchors that the row has. Raises DataError where one cannot be decoded, or all are lacking.

    where: the crop of its picture, and of all frames alike. drawn: `draws` numbers; 0.5 each takes the middles, and sounds as they are.
    only: of this anchor alone, which may be lacking.
    """
    makers = {
        "image": (example.picture, lambda picture: Input(transforms.crop(picture, config.image_size, where, config.resample))),
        "audio": (example.sound, lambda sound: heard(sound, config.audio, drawn[0], drawn[-1])),
        "video": (example.clip, lambda clip: seen(clip, config, where, drawn[1 : 1 + config.video.frames])),
    }
    found, lacking = {}, None
    for anchor in config.anchors if only is None else (only,):
        stored, make = makers[anchor]
        if stored is None:
            continue
        try:
            found[anchor] = make(stored)
        except DataError as error:
            if not is_lacking(error, config):
                raise
            lacking = error
    if lacking is not None and not found and only is None:
        raise lacking
    return found


def heard(sound: Sound, config: AudioDataConfig, where: float, pace: float = 0.5) -> Input:
    """int16 [N], zeros after its end, and bool [L]: the frames that begin within it.

    where, in [0, 1]: which part of a longer one. pace, in [0, 1]: from slowest to fastest of data.audio.speed; 0.5: as it is.
    """
    values, mask = silence(config)
    assert mask is not None
    speed = 1 + config.speed * (2 * pace - 1)
    samples = audio.played(sound.samples(config.rate, speed * config.seconds, where), config.rate, speed)[: len(values)]
    values[: len(samples)] = samples
    mask[: config.frames_of(len(samples))] = True
    return Input(values, mask)


def seen(clip: Clip, config: DataConfig, where: transforms.Place, drawn: Sequence[float]) -> Input:
    """uint8 [F, S, S, 3]: a frame of each of F equal parts of the clip, where in it `drawn` says, or with data.video.sampling = "uniform"
    its middle."""
    count = config.video.frames
    inside = drawn if config.video.sampling == "random" else [0.5] * count
    frames = clip.frames([(part + at) / count for part, at in enumerate(inside)])
    return Input(np.stack([transforms.crop(frame, config.image_size, where, config.resample) for frame in frames]))


def stacked(
    rows: Sequence[Mapping[str, Input]], config: DataConfig, *, whole: bool = False
) -> tuple[dict[str, Tokens], dict[str, np.ndarray]]:
    """(inputs, present) of a batch by anchor. A row that lacks one has zeros there; a single anchor that no row has is left out, for its
    features are stored, unless `whole`."""
    found, present = {}, {}
    for anchor in config.anchors:
        there = np.array([anchor in row for row in rows])
        present[anchor] = np.ones(len(rows), bool) if len(config.anchors) == 1 else there
        if len(config.anchors) == 1 and not there.any() and not whole:
            continue
        lacking = nothing(anchor, config)
        parts = [row.get(anchor, lacking) for row in rows]
        mask = None if lacking.mask is None else np.stack([part.mask for part in parts if part.mask is not None])
        found[anchor] = Tokens(values=np.stack([part.values for part in parts]), mask=mask)
    return found, present


def nothing(anchor: str, config: DataConfig, make: Make = np.zeros) -> Input:
    """What stands for an anchor that a row lacks; make(shape, type) makes each array."""
    side = config.image_size
    if anchor == "audio":
        return silence(config.audio, make)
    shape = (side, side, 3) if anchor == "image" else (config.video.frames, side, side, 3)
    return Input(make(shape, np.uint8))


def silence(config: AudioDataConfig, make: Make = np.zeros) -> Input:
    """`nothing` of a sound."""
    return Input(make((config.samples,), np.int16), make((config.frames,), np.bool_))
