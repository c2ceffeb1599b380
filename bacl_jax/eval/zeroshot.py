"""Zero-shot classification: a picture is of the class whose name, put into prompts, is most similar to it.

Dimension legend: C classes, n pictures of a batch, D embedding width.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from bacl_jax.config import ConfigError
from bacl_jax.config_eval import ClassificationConfig
from bacl_jax.data import transforms
from bacl_jax.data.tfds_source import TfdsRows
from bacl_jax.errors import DataError
from bacl_jax.eval.benchmarks import Outcome
from bacl_jax.eval.encoder import Encoder, Shown
from bacl_jax.eval.formats import LeftOut, counted, read_text
from bacl_jax.eval.retrieval import TIE, chance_of_first
from bacl_jax.eval.templates import TEMPLATES
from bacl_jax.settings import how_to_set

FIELD = "config.eval.classification"
PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TOP = 5
TFDS = "tfds:"  # before the name of a data set of tensorflow-datasets


@dataclasses.dataclass(frozen=True)
class Folders:
    """Class c is called names[c]; picture i shows class label[i]."""

    names: list[str]
    pictures: list[Shown]
    label: list[int]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Pictures that show one class each, wherever they are stored: class c is called names[c].

    place: where picture i is, as an error names it. read: (its pixels, its class); raises DataError.
    """

    names: list[str]
    count: int
    place: Callable[[int], str]
    read: Callable[[int], tuple[UInt8[np.ndarray, "S S 3"], int]]


def classification(encoder: Encoder) -> Outcome:
    """The task `classification` on the pictures that eval.classification names, in percent.

    `top1`, `top5`: share of the pictures whose class is the most similar one, or among the first 5. `mean_class_recall`: mean, over the
    classes that have a picture, of their pictures' top1. A tie counts its share, as everywhere; `<name>_chance` is what a model scores that
    ties all classes. `n`: pictures scored; `n_entries`: pictures there are; `n_classes`; `left_out/<reason>`: pictures that cannot be read.
    Host memory: 4 C D bytes, and 4 n C for a batch's scores.
    """
    settings = encoder.config.eval.classification
    templates = read_templates(settings.templates)
    found = labelled(encoder)
    prompts = class_embeddings(encoder, found.names, templates)
    labels, greater, ties = (np.zeros(found.count, np.int64) for _ in range(3))
    left_out: list[LeftOut] = []
    scored = np.ones(found.count, bool)

    def read(place: int) -> UInt8[np.ndarray, "S S 3"]:
        pixels, labels[place] = found.read(place)
        return pixels

    for z, rows, bad in encoder.encoded(read, found.count):
        for place, error in bad.items():
            name = found.place(place)
            left_out.append(LeftOut(str(settings.path), name, name, error.kind, str(error)))
            scored[place] = False
        if rows:
            greater[rows], ties[rows] = places(z @ prompts.T, labels[rows])
    metrics = recalls(labels[scored], greater[scored], ties[scored], len(found.names))
    metrics |= {"n": int(scored.sum()), "n_entries": found.count, "n_classes": len(found.names)}
    texts = [template.replace("{}", name) for template in templates for name in found.names]
    return Outcome(metrics | counted(left_out) | encoder.text_statistics(texts), left_out)


def labelled(encoder: Encoder) -> Labelled:
    """The pictures of eval.classification: those below a folder for each class, or of a data set of tensorflow-datasets."""
    settings, data = encoder.config.eval.classification, encoder.config.data
    if not (settings.path or "").startswith(TFDS):
        folders = read_folders(settings)
        root = Path(str(settings.path))
        return Labelled(
            folders.names,
            len(folders.pictures),
            lambda place: folders.pictures[place].names[0],
            lambda place: (encoder.picture(root, folders.pictures[place]), folders.label[place]),
        )
    name = str(settings.path).removeprefix(TFDS)
    rows = TfdsRows(name, settings.split, settings.image_column, settings.label_column, settings.folder)
    if rows.classes is None:
        raise DataError(
            f"{name}: feature {settings.label_column!r} names no classes; name its ClassLabel in {FIELD}.label_column", kind="type"
        )
    number = {one: i for i, one in enumerate(rows.classes)}

    def read(place: int) -> tuple[UInt8[np.ndarray, "S S 3"], int]:
        record = rows[place]
        picture = transforms.Encoded(record.image, record.key, record.shard, data.max_pixels, 2 * data.image_size)
        return picture.crop(data.image_size, transforms.square, data.resample), number[record.captions[0]]

    return Labelled(_class_names(rows.classes, settings.classes), len(rows), lambda place: f"{settings.split}#{place}", read)


def places(scores: Float[np.ndarray, "n C"], label: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(classes that score above the right one, others that tie with it) of each picture."""
    own = scores[np.arange(len(scores)), label][:, None]
    return np.sum(scores > own + TIE, axis=1), np.sum(np.abs(scores - own) <= TIE, axis=1) - 1


def recalls(labels: np.ndarray, greater: np.ndarray, ties: np.ndarray, classes: int) -> dict[str, float]:
    """`top1`, `top5`, `mean_class_recall` and what guessing gets; nothing of no picture."""
    if not len(labels):
        return {}
    top1, top5 = (chance_of_first(greater, ties, k) for k in (1, TOP))
    counts = np.bincount(labels, minlength=classes)
    recall = np.bincount(labels, top1, minlength=classes)[counts > 0] / counts[counts > 0]
    return {
        "top1": 100 * float(top1.mean()),
        "top5": 100 * float(top5.mean()),
        "mean_class_recall": 100 * float(recall.mean()),
        "top1_chance": 100 / classes,
        "top5_chance": 100 * min(TOP, classes) / classes,
        "mean_class_recall_chance": 100 / classes,
    }


def class_embeddings(encoder: Encoder, names: list[str], templates: tuple[str, ...]) -> Float[np.ndarray, "C D"]:
    """Of each class, the direction of the mean of its prompts' normalised embeddings."""
    total = sum(encoder.texts([template.replace("{}", name) for name in names]) for template in templates)
    length = np.linalg.norm(np.asarray(total), axis=1, keepdims=True)
    return np.asarray(total / np.maximum(length, TIE), np.float32)


def read_templates(name: str) -> tuple[str, ...]:
    """The set of this name, or the lines of this file; every one holds {} once. ConfigError or DataError where there are none."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    path, field = Path(name), f"{FIELD}.templates"
    if not path.is_file():
        raise ConfigError(
            f"{field} = {name!r}: must be one of {', '.join(TEMPLATES)} or a file with a template a line; {how_to_set(field)}"
        )
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]
    for number, line in lines:
        if line.count("{}") != 1:
            raise DataError(f"{path}, line {number}: {line!r}; must hold {{}} once, where the class's name goes", kind="format")
    if not lines:
        raise DataError(f"{path}: holds no template; write one a line, such as {TEMPLATES['plain'][0]}", kind="empty")
    return tuple(line for _, line in lines)


def read_folders(settings: ClassificationConfig) -> Folders:
    """The pictures below each folder of eval.classification.path, sorted; a folder without any is a class all the same."""
    field = f"{FIELD}.path"
    if settings.path is None or not Path(settings.path).is_dir():
        raise ConfigError(
            f"{field} = {settings.path!r}: must name a folder with a folder for each class, or {TFDS}<name>; {how_to_set(field)}"
        )
    folders, pictures, label = read_pictures(Path(settings.path))
    return Folders(_class_names(folders, settings.classes), pictures, label)


def read_pictures(root: Path) -> tuple[list[str], list[Shown], list[int]]:
    """(the folders of `root`, one for each class, sorted; the pictures below them; each one's folder by number). DataError without any."""
    folders = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if len(folders) < 2:
        raise DataError(f"{root}: has {len(folders)} folders; must have one for each of two or more classes", kind="empty")
    pictures, label = [], []
    for number, folder in enumerate(folders):
        for file in sorted((root / folder).rglob("*")):
            if file.suffix.lower() in PICTURES and not file.name.startswith("."):
                pictures.append(Shown((str(file.relative_to(root)),)))
                label.append(number)
    if not pictures:
        raise DataError(f"{root}: no picture in the {len(folders)} folders; their names end in {', '.join(PICTURES)}", kind="empty")
    return folders, pictures, label


def _class_names(folders: list[str], classes: str | None) -> list[str]:
    if classes is None:
        return [folder.replace("_", " ") for folder in folders]
    path = Path(classes)
    if path.suffix.lower() != ".json":
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if len(names) != len(folders):
            raise DataError(f"{path}: {len(names)} names for {len(folders)} classes; write one a line, in their order", kind="format")
        return names
    try:
        table = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}); write an object of folder and name", kind="syntax") from error
    if not isinstance(table, dict):
        raise DataError(f"{path}: holds a {type(table).__name__}; must be an object of folder and name", kind="format")
    for folder in folders:
        if not isinstance(table.get(folder), str) or not table[folder].strip():
            raise DataError(f"{path}, entry {folder!r}: {table.get(folder)!r}; must be the name of the class in this folder", kind="format")
    return [table[folder] for folder in folders]
