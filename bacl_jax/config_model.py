"""The settings of the model: a tower for each modality (config.model)."""

import dataclasses
from typing import Literal

from bacl_jax.settings import NonNegative, Positive, PositiveFloat, changeable

Activation = Literal["gelu_tanh", "gelu", "quick_gelu"]


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    kind: Literal["conv", "vit", "clip", "siglip"] = "conv"  # clip, siglip: the form in which their weights are published
    width: Positive = 64  # channels of the token features
    depth: Positive = 2  # blocks
    heads: Positive = 4  # attention heads; conv has none
    patch: Positive = 4  # pixels a side of one token
    mlp_ratio: PositiveFloat = 4.0  # hidden width of a block's MLP, in widths; conv has none
    activation: Activation = "gelu_tanh"  # of the MLPs; conv: always gelu_tanh
    pixels: Literal["half", "clip", "imagenet"] = "half"  # mean and deviation by which pixels are normalised; half: to [-1, 1]
    pretrained: str | None = changeable(None)  # folder or file with the weights that a run begins with; None: random


@dataclasses.dataclass(frozen=True)
class TextConfig:
    kind: Literal["transformer", "clip", "siglip", "bert"] = "transformer"  # transformer: pools the mean; others: as published
    width: Positive = 128
    depth: Positive = 1
    heads: Positive = 4
    mlp_ratio: PositiveFloat = 4.0
    activation: Activation = "gelu_tanh"
    pretrained: str | None = changeable(None)  # as the image tower's; where both name one place, the temperature is read from there


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """The audio tower: a transformer over patches of the log-mel spectrogram (AST, arXiv 2104.01778)."""

    width: Positive = 128  # channels of the token features
    depth: Positive = 3  # blocks
    heads: Positive = 4
    mlp_ratio: PositiveFloat = 4.0
    patch_frames: Positive = 16
    patch_bins: Positive = 16
    stride_frames: Positive = 16  # less than patch_frames: patches overlap (AST: 10)
    stride_bins: Positive = 16


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """The video tower: the image tower of model.image over each frame, a transformer of width model.embed_dim over the frames."""

    depth: NonNegative = 1  # blocks over the frames; 0: none
    heads: Positive = 4
    mlp_ratio: PositiveFloat = 4.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    embed_dim: Positive = 128
    image: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    audio: AudioConfig = AudioConfig()
    video: VideoConfig = VideoConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"  # compute; parameters stay float32
    remat: Literal["none", "dots", "full"] = changeable("none")  # what a transformer block makes again in the backward pass
    scan_layers: bool = changeable(False)  # a tower's transformer blocks are compiled once, as a loop
