"""Every setting of a run, as frozen dataclasses, and the one reader of a ConfigDict.

A field's comment gives unit and meaning, its type the values it may take. Fields marked `changeable` may differ between
the run that wrote a workdir and the run that resumes it; any other difference is refused (`check_resumable`).
"""

import dataclasses
import hashlib
import json
import shlex
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict, FieldReference

from bacl_jax.config_eval import EvalConfig
from bacl_jax.config_media import Anchor, AudioDataConfig, ClipsConfig, StampsConfig, VideoDataConfig
from bacl_jax.config_model import ModelConfig
from bacl_jax.config_objective import ObjectiveConfig
from bacl_jax.config_watch import WatchConfig
from bacl_jax.rules import rules
from bacl_jax.settings import (
    ConfigError,
    Decay,
    NonNegative,
    NonNegativeFloat,
    Pattern,
    Positive,
    PositiveFloat,
    Range,
    Share,
    changeable,
    group_of,
    how_to_set,
    leaves,
    read,
)

BestMetric = Literal[  # what the task `retrieval` gives while a run trains (in percent) and of which more is better
    "i2t_R@1",
    "i2t_R@5",
    "i2t_R@10",
    "i2t_mAP",
    "i2t_R@1_all",
    "i2t_R@5_all",
    "i2t_R@10_all",
    "i2t_mAP_all",
    "t2i_R@1",
    "t2i_R@5",
    "t2i_R@10",
    "t2i_mAP",
    "a2t_R@1",
    "a2t_R@5",
    "a2t_R@10",
    "a2t_mAP",
    "v2t_R@1",
    "v2t_R@5",
    "v2t_R@10",
    "v2t_mAP",
]


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture. The fields are those of DataConfig; what is not here is taken from there."""

    kind: Literal["emoji", "manifest", "webdataset", "parquet", "array_record", "tfds"] = "webdataset"
    path: str | None = changeable(None)
    weight: PositiveFloat = 1.0  # share of each batch, beside the other sources' weights
    name: str | None = None  # in metrics and reports; None: the kind and its place among the sources
    index: str | None = changeable(None)
    folder: str | None = changeable(None)
    split: str = "train"
    image_column: str = "image"
    caption_column: str = "caption"
    id_column: str | None = None
    split_column: str | None = None
    validation_rows: NonNegative = 0
    test_rows: NonNegative = 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    kind: Literal["emoji", "manifest", "webdataset", "parquet", "array_record", "tfds", "mixture", "clips", "stamps", "sprites"] = "emoji"
    anchors: tuple[Anchor, ...] = ("image",)  # what is paired with the text: a term each, with a bank, BNS and CLA of its own
    path: str | None = changeable(None)  # files of the kind, or the name of a tfds data set; emoji: None finds the installed package
    sources: tuple[SourceConfig, ...] = ()  # mixture: what it is made of
    index: str | None = changeable(None)  # webdataset: index file; None: shards.index beside the shards
    folder: str | None = changeable(None)  # tfds: where its data sets lie; None: its own default
    split: str = "train"  # tfds: split of the data set, such as train[:90%]
    vendors: tuple[str, ...] = ("Goog", "Twtr")  # emoji: image sets to use; others than these two have restrictive licences
    language: str = "en"  # emoji: caption language, one of the 14 of the package `emoji`
    holdout: Literal["compositional", "words", "vendor"] = "compositional"  # emoji: what is kept out of training
    holdout_vendors: tuple[str, ...] = ("Twtr",)  # emoji, holdout = "vendor": the vendors kept for the test
    holdout_seed: NonNegative = 0  # emoji: draws the held-out captions; not tied to `seed`, so that runs share them
    validation_captions: NonNegative = 200  # emoji: held-out captions for tuning
    test_captions: NonNegative = 400  # emoji: held-out captions for the reported table
    image_column: str = "image"  # manifest: path relative to its folder; parquet: encoded picture; tfds: image feature
    caption_column: str = "caption"  # manifest, parquet, tfds
    id_column: str | None = None  # manifest, parquet, tfds: key of the anchor; None: the image path, or the row itself
    split_column: str | None = None  # manifest: values train, validation, test; None: every row is train
    unpaired_share: Annotated[float, Range(0, 0.9)] = 0.0  # manifest: share of a batch from rows without caption or image; 0: refused
    truth_column: str | None = None  # manifest: the caption that a row without one truly has, where known; for metrics alone
    validation_rows: NonNegative = 0  # sources without a split of their own: rows kept out of training, drawn by holdout_seed
    test_rows: NonNegative = 0  # the same for the test
    train_rows: Positive | None = None  # training rows that are used, drawn by holdout_seed; a smaller number's are among them. None: all
    on_error: Literal["raise", "skip"] = changeable("raise")  # bad rows stop the run, or are counted, logged and, while training, replaced
    max_error_share: Share = changeable(0.01)  # on_error = skip: a larger share of bad rows among those read stops the run
    max_pixels: Positive = 89_478_485  # a larger image is refused as a decompression bomb
    image_size: Positive = 32  # pixels a side
    tokenizer: Literal["word", "bpe", "wordpiece", "clip", "file"] = "word"  # trained on captions, or read from tokenizer_path
    tokenizer_path: str | None = None  # tokenizer = "file": a tokenizer.json, CLIP's bpe_simple_vocab_16e6.txt.gz or a vocab.txt
    vocab_size: Annotated[int, Range(5)] = 4096  # upper bound on the vocabulary trained on the captions; of a file, its number of tokens
    context_length: Annotated[int, Range(3)] = 13  # tokens a caption, BOS and EOS included; longer captions are cut
    resample: Literal["bilinear", "bicubic"] = "bilinear"  # filter that scales crops, with anti-aliasing; open_clip: bicubic
    clean_captions: bool = False  # manifest and rows read as needed: entities, tags, URLs, broken encodings and control characters go
    augment_crop: Literal["square", "resized"] = "square"  # a square, scaled and shifted; a part of any ratio, made square
    augment_scale: Annotated[float, Range(0, 0.9)] = 0.15  # square: side of the crop in [1 - s, 1 + s] of the picture's; 0: none
    augment_shift: Share = 0.1  # square: crop centre moves by up to this share of the side; 0: none
    augment_area: tuple[float, ...] = (0.9, 1.0)  # resized: least and largest share of the picture's area
    augment_ratio: tuple[float, ...] = (0.75, 4 / 3)  # resized: least and largest width / height of the part
    augment_flip: bool = False  # mirror at random, but never a picture whose caption says left or right (English)
    shuffle: Literal["global", "block"] = "global"  # block: neighbouring rows are read at about the same time, for remote storage
    block_rows: Positive = 256  # neighbouring rows that make a block
    block_window: Positive = 1024  # rows of a lane that are shuffled among each other
    block_lanes: Positive = 8  # parts of a batch that read different blocks; a multiple of the number of hosts
    cache_mib: Positive = changeable(512)  # stored data kept in memory: row groups of parquet; pages of remote shards, shuffle = block
    threads: Positive = changeable(2)  # readers of the grain pipeline
    features: str | None = changeable(None)  # folder that launch.precompute wrote: what frozen towers made of the training rows
    prefetch: Positive = changeable(4)  # batches read ahead; with threads less than bns.list_delay when partners are drawn
    audio: AudioDataConfig = dataclasses.field(default_factory=AudioDataConfig)
    video: VideoDataConfig = dataclasses.field(default_factory=VideoDataConfig)
    clips: ClipsConfig = dataclasses.field(default_factory=ClipsConfig)
    stamps: StampsConfig = dataclasses.field(default_factory=StampsConfig)

    def source_names(self) -> list[str]:
        """The name of each source of a mixture, its own or made of its kind and place."""
        return [source.name or f"{source.kind}{number}" for number, source in enumerate(self.sources)]


@dataclasses.dataclass(frozen=True)
class SpectralConfig:
    """Heads of frozen trunks begin from the SVD of the cross-covariance of their features (arXiv 2302.06232)."""

    enabled: bool = False
    rounds: NonNegative = 2  # power steps with the loss's own weights after the linear solution; each is one more pass
    ridge: PositiveFloat | None = 0.01  # whitening: mean variances added to each variance; None: features are not whitened
    rows: Positive | None = None  # pairs of a pass, rounded up to whole batches; None: the training rows


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    lr: PositiveFloat = 4e-3
    cross_lr: PositiveFloat = 1e-3  # peak for CLA's cross-modal layers
    warmup_steps: NonNegative = 50
    end_lr_share: Share = 0.0  # cosine ends at this share of lr
    weight_decay: NonNegativeFloat = 0.3
    b1: Decay = 0.9
    b2: Decay = 0.98
    eps: PositiveFloat = 1e-6
    clip_norm: PositiveFloat = 1.0
    policy_lr: PositiveFloat = 1e-3
    policy_clip_norm: PositiveFloat = 1.0
    ema_decay: Decay | None = None  # decay of the averaged parameters that evaluation uses; None: no average
    frozen: tuple[Pattern, ...] = ()  # paths of parameters that are not trained; each matches some parameter's whole path
    spectral: SpectralConfig = SpectralConfig()


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: Positive = changeable(1000)
    batch_size: Positive = 256  # global
    micro_batches: Positive = changeable(1)  # parts in which the towers see a batch: less memory, a forward pass more, the same gradient
    log_every: Positive = changeable(10)  # steps
    eval_every: NonNegative = changeable(200)  # steps; 0: only at the end
    save_every: Positive = changeable(200)  # steps
    save_minutes: PositiveFloat | None = changeable(
        1.0
    )  # also save when so much time has passed, looked at when a line is logged; None: never
    keep: Positive = changeable(2)  # newest checkpoints kept, beside the best
    keep_best: BestMetric | None = changeable("i2t_R@1")  # metric of the `retrieval` task on eval.split; None: newest only
    halt_after_nonfinite: Positive = changeable(20)  # consecutive skipped steps before the run stops


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: Annotated[int, Range(-1)] = changeable(-1)  # devices along the batch; -1: those that remain
    fsdp: Positive = changeable(1)  # devices along the batch that also share parameters, optimiser and averages
    tensor: Positive = changeable(1)  # devices that share attention heads and hidden layers
    fsdp_floor: NonNegative = changeable(65536)  # elements; smaller parameters are not cut by fsdp
    whole: tuple[Pattern, ...] = changeable(())  # paths of parameters that are never cut; each matches some parameter's whole path


@dataclasses.dataclass(frozen=True)
class Config:
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0  # of everything random: weights, data order, augmentation, draws
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    watch: WatchConfig = dataclasses.field(default_factory=WatchConfig)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a config dataclass; tuples become lists, as in JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(config: Any) -> dict[str, Any]:
    """Dotted field name, as on the command line without `config.`, -> value."""
    return dict(leaves(config))


def default_config_dict() -> ConfigDict:
    """The defaults as an ml_collections ConfigDict whose fields can all be set on the command line.

    A field that may be None has the type `object`: ml_collections then takes None, a number or a word from the command line, and
    `from_config_dict` checks what came. Every other field keeps the type of its default.
    """
    return _config_dict(Config())


def _config_dict(config: Any) -> ConfigDict:
    hints, result = typing.get_type_hints(type(config)), ConfigDict()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            result[field.name] = _config_dict(value)
        else:
            result[field.name] = optional(value) if type(None) in typing.get_args(hints[field.name]) else value
    return result


def optional(value: Any) -> FieldReference:
    """A ConfigDict value that the command line may set to None and from None."""
    return FieldReference(value, field_type=object)


def sha256(config: Config) -> str:
    """Hex digest of the config's canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def from_config_dict(settings: ConfigDict | Mapping[str, Any]) -> Config:
    """The only reader of a ConfigDict (or of the nested mapping of a config.json). A missing key keeps its default.

    Raises ConfigError on an unknown key, a wrong type, a value out of range, and on fields that contradict each other.
    """
    config = unchecked(settings)
    if found := contradictions(config):
        raise found[0]
    return config


def unchecked(settings: ConfigDict | Mapping[str, Any]) -> Config:
    """The same where fields may contradict each other."""
    return read(Config, settings.to_dict() if isinstance(settings, ConfigDict) else settings, "config")


def contradictions(config: Config) -> list[ConfigError]:
    """One for each rule between fields that does not hold; the last is the one that the others cannot be asked after."""
    values, found = flatten(config), []
    try:
        for holds, field, message in rules(config):
            if not holds:
                found.append(ConfigError(f"config.{field} = {values[field]!r}: {message}; {how_to_set(f'config.{field}')}"))
    except ConfigError as error:
        found.append(error)
    return found


def changed_fields(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (old value, new value) of every field that differs; None for one that either lacks (of a mixture's source)."""
    before, after = flatten(old), flatten(new)
    return {name: (before.get(name), after.get(name)) for name in {**before, **after} if before.get(name) != after.get(name)}


def listed(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """The fields of `changed_fields` in words."""
    return "; ".join(f"config.{name} was {before!r}, is now {after!r}" for name, (before, after) in changes.items())


def is_changeable(name: str) -> bool:
    """Whether a workdir may be resumed with another value of this field."""
    cls, leaf = group_of(Config, name)
    return {field.name: field.metadata.get("changeable", False) for field in dataclasses.fields(cls)}[leaf]


def check_resumable(old: Config, new: Config) -> None:
    """ConfigError that names field, old and new value unless every field that differs is changeable."""
    refused = {name: pair for name, pair in changed_fields(old, new).items() if not is_changeable(name)}
    if refused:
        back = " ".join(f"{'' if '[' in name else '--'}config.{name}={shlex.quote(str(before))}" for name, (before, _) in refused.items())
        raise ConfigError(f"the workdir belongs to another config: {listed(refused)}. Take another --workdir, or set back: {back}")
