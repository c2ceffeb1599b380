"""The settings of evaluation, config.eval: a part of bacl_jax/config.py, which tells how fields are described. All may change later."""

import dataclasses
from typing import Annotated, Literal

from bacl_jax.settings import NonNegative, Positive, PositiveFloat, Range, Share, changeable


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """The task `audit` of launch.evaluate: likely wrong pairs, duplicates and false negatives."""

    split: Literal["train", "validation", "test"] = changeable("train")  # whose pairs are looked at
    steps: tuple[Positive, ...] = changeable(())  # checkpoints whose scores are averaged; (): all that are kept, up to --step
    k: Positive = changeable(10)  # neighbours of a picture or caption; a pair whose parts are not among each other's k is not mutual
    similarity: Annotated[float, Range(-1, 1)] = changeable(0.9)  # near duplicates: least cosine of two pictures' embeddings
    pixels: Share = changeable(0.05)  # near duplicates: largest difference of a pixel of their thumbnails, in [0, 1]
    tolerance: Annotated[float, Range(-2, 2)] = changeable(0.1)  # false negatives: at most so much less similar than the own pair; a cosine
    shown: NonNegative = changeable(24)  # rows of each picture; 0: none is drawn


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """A compositional benchmark of launch.evaluate, in its published files."""

    path: str | None = changeable(None)  # its file, or the folder of its files
    images: str | None = changeable(None)  # folder of its pictures; None: images, beside the files


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """The task `classification` of launch.evaluate: pictures in a folder for each class, or of a data set of tensorflow-datasets."""

    path: str | None = changeable(None)  # folder of the classes' folders; tfds:<name>: a data set
    classes: str | None = changeable(None)  # .txt: a name a line, in the order of the folders; .json: folder to name; None: their own names
    templates: str = changeable("plain")  # plain: a photo of a {}.; another set of bacl_jax/eval/templates.py; else a file with one a line
    split: str = changeable("test")  # tfds: which part
    folder: str | None = changeable(None)  # tfds: where its data sets lie; None: its own default
    image_column: str = changeable("image")  # tfds: image feature
    label_column: str = changeable("label")  # tfds: feature with the class


@dataclasses.dataclass(frozen=True)
class CaptionedConfig:
    """The task `retrieval` of launch.evaluate over a file of pictures with several captions each, not over the run's own data."""

    path: str | None = changeable(None)  # .json as of Karpathy's splits, or a manifest (.csv, .jsonl, .parquet); None: the run's own data
    images: str | None = changeable(None)  # folder of its pictures; None: images beside a .json, the folder of a manifest
    split: str = changeable("test")  # which of its pictures; of a file without splits: all
    captions: Positive | None = changeable(None)  # of each picture, the first so many; None: all
    image_column: str = changeable("image")  # of a manifest: path relative to the folder
    caption_column: str = changeable("caption")  # of a manifest
    split_column: str | None = changeable(None)  # of a manifest; None: it has no splits


@dataclasses.dataclass(frozen=True)
class RobustnessConfig:
    """The task `robustness` of launch.evaluate: retrieval with corrupted captions, of the run's own data or of eval.retrieval.path."""

    kinds: tuple[Literal["delete", "swap", "shuffle", "replace", "typo"], ...] = changeable(
        ("delete", "swap", "shuffle", "replace", "typo")
    )  # what happens to a word
    rates: tuple[Share, ...] = changeable((0.1, 0.3, 0.5))  # chance of each word that it is hit
    seeds: Positive = changeable(3)  # draws that are averaged


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """The task `probe` of launch.evaluate: a linear classifier on frozen embeddings of pictures in a folder for each class."""

    path: str | None = changeable(None)  # folder of the classes' folders to fit to
    test: str | None = changeable(None)  # the same to test on
    weights: tuple[PositiveFloat, ...] = changeable((1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0))  # of the L2 term; the best of them is taken
    validation_share: Share = changeable(0.2)  # of each class's pictures in `path`: those that the weight is chosen on
    steps: Positive = changeable(1000)  # of L-BFGS, at most
    seed: NonNegative = changeable(0)  # draws the pictures that the weight is chosen on


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    split: Literal["validation", "test"] = changeable("validation")  # what the run evaluates while it trains
    report: Literal["validation", "test"] = changeable("test")  # what the report at the end is about; where it has no rows: split
    tasks: tuple[Literal["retrieval", "halftrue", "localization", "fusion"], ...] = changeable(
        ("retrieval", "halftrue", "localization")
    )  # localization: at the end only
    plots: bool = changeable(True)  # the report at the end draws curves, nearest captions and images, and attention
    batch_size: Positive = changeable(256)  # rows encoded at a time
    chunk: Positive = changeable(1024)  # queries ranked at a time
    rerank: NonNegative = changeable(0)  # retrieval: the first so many entries, re-ordered by the matching logit of CLA; 0: off
    audit: AuditConfig = AuditConfig()
    retrieval: CaptionedConfig = CaptionedConfig()
    classification: ClassificationConfig = ClassificationConfig()
    robustness: RobustnessConfig = RobustnessConfig()
    probe: ProbeConfig = ProbeConfig()
    sugarcrepe: BenchmarkConfig = BenchmarkConfig()
    sugarcrepe_pp: BenchmarkConfig = BenchmarkConfig()
    winoground: BenchmarkConfig = BenchmarkConfig()
    aro: BenchmarkConfig = BenchmarkConfig()
    valse: BenchmarkConfig = BenchmarkConfig()
