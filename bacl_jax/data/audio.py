"""Sound files: libsndfile decodes (WAV, FLAC, Ogg, MP3), soxr resamples; mono at one rate, as 16-bit samples.

Dimension legend: n samples, at most rate * seconds.
"""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16

from bacl_jax.config_media import RATES
from bacl_jax.data import ffmpeg
from bacl_jax.data.optional import library
from bacl_jax.data.source import Sound
from bacl_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Heard(Sound):
    """A decoded sound at one rate."""

    values: Int16[np.ndarray, " N"]
    rate: int

    def samples(self, rate: int, seconds: float, where: float) -> Int16[np.ndarray, " n"]:
        assert rate == self.rate, f"kept at {self.rate} samples a second, asked for at {rate}"
        length = min(len(self.values), round(seconds * rate))
        start = round(where * (len(self.values) - length))
        return self.values[start : start + length]


@dataclasses.dataclass(frozen=True, slots=True)
class SoundFile(Sound):
    """A sound file; of a long one the part that is asked for is decoded."""

    path: str
    max_seconds: float

    def samples(self, rate: int, seconds: float, where: float) -> Int16[np.ndarray, " n"]:
        try:
            return decode(Path(self.path), rate, seconds=seconds, where=where, max_seconds=self.max_seconds)
        except DataError as error:
            raise DataError(f"{self.path}: {error}", kind=error.kind, shard=self.path) from error


MICROSECONDS = 1_000_000  # units a second of the length that a container tells
FILMS = (".mp4", ".m4a", ".webm", ".mkv", ".mov", ".avi")  # whose sound FFmpeg decodes (PyAV), not libsndfile


def decode(source: bytes | Path, rate: int, *, seconds: float, where: float = 0.5, max_seconds: float) -> Int16[np.ndarray, " n"]:
    """At most `seconds` of a sound, mono (the mean of its channels), `rate` samples each; where, in [0, 1]: which part of a longer one.

    Raises DataError of kind "unreadable" (no sound file, or a damaged one), "empty" (no sample in it) or "bomb" (its header tells more
    than max_seconds). Memory: the part, at the file's own rate.
    """
    if isinstance(source, Path) and source.suffix.lower() in FILMS:
        return of_film(source, rate, seconds=seconds, where=where, max_seconds=max_seconds)
    soundfile, soxr = library("soundfile", "sound"), library("soxr", "sound")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            own, there = file.samplerate, file.frames
            if not RATES[0] <= own <= RATES[1]:
                raise DataError(f"not a readable sound ({own:,} samples a second)", kind="unreadable")
            if there > max_seconds * own:
                raise _too_long(there / own, max_seconds)
            wanted = min(there, round(seconds * own))
            if start := round(where * (there - wanted)):
                file.seek(start)
            values = file.read(wanted, dtype="float32", always_2d=True).mean(1)
    except DataError:  # which is a ValueError
        raise
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:  # TypeError: of a name that ends in .raw
        raise DataError(f"not a readable sound ({str(error).splitlines()[0]})", kind="unreadable") from error
    if not np.isfinite(values).all():
        raise DataError("not a readable sound (samples that are no numbers)", kind="unreadable")
    values = soxr.resample(values, own, rate) if own != rate and len(values) else values
    if not len(values):
        raise DataError("no sample in it", kind="empty")
    return _as_int16(values[: round(seconds * rate)])


def played(values: Int16[np.ndarray, " n"], rate: int, speed: float) -> Int16[np.ndarray, " m"]:
    """The sound `speed` times as fast, pitch included (speed perturbation, Ko et al., Interspeech 2015); m is about n / speed.

    In float32: of int16, soxr dithers what it returns, not the same each time.
    """
    if speed == 1:
        return values
    return _as_int16(library("soxr", "sound").resample(values.astype(np.float32) / 32768, rate * speed, rate))


def _as_int16(values: Float32[np.ndarray, " n"]) -> Int16[np.ndarray, " n"]:
    return np.clip(np.round(values * 32768), -32768, 32767).astype(np.int16)


def _too_long(found: float, most: float) -> DataError:
    return DataError(f"refused: {found:,.0f} s of sound, data.audio.max_seconds is {most:g}; cut the file or raise it", kind="bomb")


def of_film(path: Path, rate: int, *, seconds: float, where: float, max_seconds: float) -> Int16[np.ndarray, " n"]:
    """`decode` of the first sound track of a video file; without one DataError of kind "no_track"."""
    wanted = round(seconds * rate)
    with ffmpeg.opened(path, "sound track") as container:
        if not container.streams.audio:
            raise DataError("no sound track in it", kind="no_track")
        stream = container.streams.audio[0]
        there = float(stream.duration * stream.time_base) if stream.duration else float(container.duration or 0) / MICROSECONDS
        if there > max_seconds:
            raise _too_long(there, max_seconds)
        if start := where * max(there - seconds, 0):
            container.seek(int(start / stream.time_base), stream=stream)
        values = _resampled(container.decode(stream), rate, start, wanted)
    if not len(values):
        raise DataError("no sample in it", kind="empty")
    return values


def _resampled(frames: Iterator[Any], rate: int, start: float, wanted: int) -> Int16[np.ndarray, " n"]:
    """The first `wanted` samples from `start` on, in seconds; the frames begin there or, after a seek, before it."""
    resampler = library("av", "sound track").AudioResampler(format="s16", layout="mono", rate=rate)
    parts: list[np.ndarray] = [np.zeros(0, np.int16)]
    before, count = None, 0  # samples before `start`, and of all parts
    for frame in frames:
        if before is None:
            before = 0 if not start or frame.time is None else max(0, round((start - frame.time) * rate))
        parts += [one.to_ndarray()[0] for one in resampler.resample(frame)]
        count = sum(map(len, parts))
        if count >= before + wanted:
            break
    else:
        parts += [one.to_ndarray()[0] for one in resampler.resample(None)]
    return np.concatenate(parts)[before or 0 :][:wanted].astype(np.int16)
