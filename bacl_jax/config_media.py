"""The settings of sound and video: what is decoded of them (config.data.audio, config.data.video), and data sets of them."""

import dataclasses
from typing import Annotated, Literal

from bacl_jax.settings import NonNegative, Positive, PositiveFloat, Range, changeable

RATES = (1_000, 768_000)  # samples a second; a file that tells another one is damaged
Anchor = Literal["image", "audio", "video"]  # what is paired with a text


@dataclasses.dataclass(frozen=True)
class AudioDataConfig:
    """Sound as the model hears it: mono at one rate, cut or padded to one length, as log-mel frames."""

    rate: Annotated[int, Range(1, RATES[1])] = 16_000  # samples a second, to which every file is resampled
    seconds: PositiveFloat = 5.0  # of a longer file a part: drawn while training, the middle in evaluations
    max_seconds: PositiveFloat = 600.0  # a longer file is refused from its header, before a sample is decoded
    speed: Annotated[float, Range(0, 0.5)] = 0.0  # while training played up to this share faster or slower, pitch included; 0: as it is
    mel_bins: Positive = 64
    window: Positive = 400  # samples of a frame
    hop: Positive = 160  # samples between two frames
    time_masks: NonNegative = 2  # SpecAugment: spans of frames that are blanked while training
    time_width: NonNegative = 30  # frames; the widest span
    bin_masks: NonNegative = 2  # SpecAugment: bands of mel bins that are blanked while training
    bin_width: NonNegative = 8  # mel bins; the widest band

    @property
    def samples(self) -> int:
        """Of what the model hears."""
        return round(self.seconds * self.rate)

    @property
    def frames(self) -> int:
        """Of its spectrogram."""
        return self.frames_of(self.samples)

    def frames_of(self, samples: int) -> int:
        """Frames of so many samples: one at each hop, the first centred on the first sample."""
        return samples // self.hop + 1


@dataclasses.dataclass(frozen=True)
class VideoDataConfig:
    """Clips as the model sees them: a fixed number of frames, each as a picture (config.data.image_size, augment_*)."""

    frames: Positive = 8  # of a clip; a shorter one repeats some
    sampling: Literal["random", "uniform"] = "random"  # while training: one frame of each of as many equal parts, or their middles
    max_frames: Positive = 20_000  # a longer clip is refused


@dataclasses.dataclass(frozen=True)
class ClipsConfig:
    """data.kind = "clips": a CSV, JSON or JSONL file, a row a clip; where the files lie is written with its columns in braces."""

    folder: str | None = changeable(None)  # of the files; None: that of data.path
    image: str | None = None  # as in "{id}.jpg"; None: rows have no image
    audio: str | None = None  # as in "{fname}"; a video file's own sound may be named here, too
    video: str | None = None  # as in "{page_dir}/{videoid}.mp4"
    label: str | None = None  # column of the class, for the task `fusion`; None: rows have none


@dataclasses.dataclass(frozen=True)
class StampsConfig:
    """data.kind = "stamps": Tux Paint's stamps, pictures with captions in many languages, spoken captions and sound effects."""

    spoken: tuple[str, ...] = ("fr", "es")  # languages of the spoken captions of training; (): the sound effects instead
    spoken_test: tuple[str, ...] = ()  # languages of those of validation and test; (): as in training
    captions: Literal["spoken", "english"] = "spoken"  # the language of the text: that which is spoken, or English
    lacking: Annotated[float, Range(0, 1)] = 0.0  # share of the training rows that lose picture or sound, drawn by data.holdout_seed
    drop_lacking: bool = False  # these rows are left out of training
