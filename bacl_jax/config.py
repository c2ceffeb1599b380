"""Every setting of a run, as frozen dataclasses, and the one reader of a ConfigDict.

A field's comment gives unit and meaning. Fields marked `CHANGEABLE` may differ between the run that wrote a
workdir and the run that resumes it; any other difference is refused.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of range; the message names field, value, allowed values."""


def _field(default: Any, *, changeable: bool = False) -> Any:
    return dataclasses.field(default=default, metadata={"changeable": changeable})


CHANGEABLE = {"changeable": True}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    kind: Literal["emoji", "manifest"] = "emoji"
    path: str | None = _field(None, changeable=True)  # manifest file; emoji: None finds the installed package
    vendors: tuple[str, ...] = ("Goog", "Twtr")  # emoji: image sets to use; others than these two have restrictive licences
    language: str = "en"  # emoji: caption language, one of the 14 of the package `emoji`
    holdout: Literal["compositional", "vendor"] = "compositional"  # emoji: what is kept out of training
    holdout_vendors: tuple[str, ...] = ("Twtr",)  # emoji, holdout = "vendor": the vendors kept for the test
    holdout_seed: int = 0  # emoji: draws the held-out captions; not tied to `seed`, so that runs share them
    validation_captions: int = 200  # emoji: held-out captions for tuning
    test_captions: int = 400  # emoji: held-out captions for the reported table
    image_column: str = "image"  # manifest: path relative to the manifest's folder
    caption_column: str = "caption"  # manifest
    id_column: str | None = None  # manifest: key of the anchor; None: the image path
    split_column: str | None = None  # manifest: values train, validation, test; None: every row is train
    on_error: Literal["raise", "skip"] = "raise"  # bad rows stop the start-up, or are counted and logged
    max_pixels: int = 89_478_485  # a larger image is refused as a decompression bomb
    image_size: int = 32  # pixels a side
    tokenizer: Literal["word", "bpe"] = "word"
    vocab_size: int = 4096  # upper bound on the vocabulary trained on the captions
    context_length: int = 16  # tokens a caption, BOS and EOS included; longer captions are cut
    augment_scale: float = 0.15  # image side of the crop in [1 - s, 1 + s] of the picture's; 0: none
    augment_shift: float = 0.1  # crop centre moves by up to this share of the side; 0: none
    augment_flip: bool = False  # mirror at random; wrong for captions that say left or right
    threads: int = _field(2, changeable=True)  # readers of the grain pipeline
    prefetch: int = _field(4, changeable=True)  # batches read ahead; < bns.list_delay when partners are drawn


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    kind: Literal["conv", "vit"] = "conv"
    width: int = 128  # channels of the token features
    depth: int = 4  # blocks
    heads: int = 4  # vit: attention heads
    patch: int = 4  # pixels a side of one token
    mlp_ratio: int = 4


@dataclasses.dataclass(frozen=True)
class TextConfig:
    width: int = 128
    depth: int = 2
    heads: int = 4
    mlp_ratio: int = 4


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    embed_dim: int = 128
    image: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"  # compute; parameters stay float32


@dataclasses.dataclass(frozen=True)
class BNSConfig:
    """Boundary-aware Negative Sampler (arXiv 2511.08399)."""

    enabled: bool = False
    k: int = 32  # hardest candidates of an anchor
    pool: int = 512  # candidates of an anchor: the k hardest plus a stratified uniform draw; pool = k is the literal paper
    reweight: bool = True  # channel (a): in-batch candidates enter the denominator once more, weight k q
    drawn_share: float = 0.0  # channel (b): share of rows for which a drawn bank caption is re-encoded as an extra column
    stale: bool = False  # ablation: bank embeddings enter the denominator as they are
    partner_share: float = 0.5  # channel (c): share of the batch that partners replace at the end of training; 0: off
    partner_k: int = 32  # channel (c): partners kept for each id of the bank
    partner_every: int = 50  # channel (c): steps between two partner lists
    list_delay: int = 8  # channel (c): steps before a new list acts; more than data.prefetch
    hidden: int = 128  # policy MLP
    policy_bound: float | None = 1.0  # |policy score| <= this; None: unbounded, the literal paper
    alpha_early: float = 0.3  # schedule at the start: > 0 suppresses hard candidates
    alpha_late: float = -0.5  # schedule at the end: < 0 seeks them
    slope: float = 1.5
    horizon: float = 10.0  # V: the schedule runs over v = V * progress, midpoint V / 2
    tau_b: float = 0.02  # unit of the boundary score
    tau_g: float = 0.5  # Gumbel-Softmax temperature
    eps: float = 0.1  # |boundary score| <= eps counts as ambiguous
    reward: Literal["boundary", "schedule"] = "boundary"
    entropy_bonus: float = 0.01


@dataclasses.dataclass(frozen=True)
class CLAConfig:
    """Contrastive Local Attention (arXiv 2511.08399)."""

    enabled: bool = False
    layers: int = 1  # cross-modal layers; the paper has 4
    width: int = 128
    heads: int = 4
    row_share: float = 0.25  # share of the rows that CLA sees each step
    top: int = 10  # entries of dA in Omega
    beta: float = 1.0
    stop_gradient: Literal["none", "positive", "all"] = "none"
    lambda_local: float = 0.3
    lambda_match: float = 0.3


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    kind: Literal["infonce", "sigmoid"] = "infonce"
    same_id: Literal["positive", "mask"] = "positive"  # rows of one caption or one anchor: positives, or left out
    init_scale: float = 14.2857  # exp(log_scale) at the start; sigmoid: 10
    max_scale: float = 100.0
    init_bias: float = -10.0  # sigmoid only
    bank_size: int = 4096  # slots of the memory bank; any size
    bns: BNSConfig = BNSConfig()
    cla: CLAConfig = CLAConfig()


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    lr: float = 2e-3
    warmup_steps: int = 50
    end_lr_share: float = 0.0  # cosine ends at this share of lr
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    clip_norm: float = 1.0
    policy_lr: float = 1e-3
    policy_clip_norm: float = 1.0
    ema_decay: float | None = None  # decay of the averaged parameters that evaluation uses; None: no average


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = _field(1000, changeable=True)
    batch_size: int = 256  # global
    log_every: int = _field(10, changeable=True)  # steps
    eval_every: int = _field(200, changeable=True)  # steps; 0: only at the end
    save_every: int = _field(200, changeable=True)  # steps
    save_minutes: float | None = _field(1.0, changeable=True)  # also save when this much time has passed; None: never
    keep: int = _field(2, changeable=True)  # newest checkpoints kept, beside the best
    keep_best: str | None = _field("i2t_R@1", changeable=True)  # metric of the `retrieval` task on validation; None: newest only
    halt_after_nonfinite: int = _field(20, changeable=True)  # consecutive skipped steps before the run stops


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = _field(-1, changeable=True)  # devices along the batch; -1: those that remain
    fsdp: int = _field(1, changeable=True)  # devices over which parameters are sharded too
    tensor: int = _field(1, changeable=True)  # devices inside one layer


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    split: Literal["validation", "test"] = _field("validation", changeable=True)  # what the run evaluates while it trains
    tasks: tuple[str, ...] = _field(("retrieval", "halftrue"), changeable=True)
    batch_size: int = _field(256, changeable=True)  # rows encoded at a time
    chunk: int = _field(1024, changeable=True)  # queries ranked at a time


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
