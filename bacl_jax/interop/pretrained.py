"""Published weights as the parameters that a run begins with: config.model.image.pretrained and config.model.text.pretrained."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bacl_jax.config import Config
from bacl_jax.data.files import located
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.interop import sizes
from bacl_jax.interop.files import Stored, WeightsError, open_weights
from bacl_jax.interop.layouts import Layout, Modality, Row, recognise

MODALITIES: tuple[Modality, ...] = ("image", "text")
SHOWN = 5  # names in a message
TOKENIZER = "tokenizer.json"
_RESIZED = ("positions", "embedding")  # parameters that may have another size than the file's


def weights(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Path of a parameter -> what it begins with, float32, for the towers that the config names; the others are not there.

    shapes: of all parameters by path. Where both towers are read from one place, so are the temperature and, of a sigmoid loss, the bias.
    Image positions are interpolated to another grid (bicubic, anti-aliased: open_clip's way), text positions cut to the context,
    the rows of an embedding cut to the tokenizer's ids. A head that the file lacks (BERT) begins at random.

    Raises WeightsError, one line, where a file is damaged or a pickle, has tensors that no tower has, lacks some, has others than
    finite numbers or other shapes; ConfigError where the config describes another tower. Memory: the parameters, once.
    """
    places: dict[Modality, str] = {modality: place for modality in MODALITIES if (place := getattr(config.model, modality).pretrained)}
    there = {place: opened(place) for place in places.values()}
    found: dict[str, np.ndarray] = {}
    for modality, place in places.items():
        found |= _tower(config, *there[place], modality, shapes)
    if len(places) > len(there):  # both towers are of one place
        found |= _extra(*there[places["image"]], shapes)
    return found


def opened(place: str) -> tuple[Stored, Layout]:
    """The weights at a place and their layout. WeightsError where it is none that is known."""
    stored = open_weights(place)
    layout = recognise(stored.shapes)
    if layout is None:
        some = ", ".join(list(stored.shapes)[:SHOWN])
        raise WeightsError(
            f"{place}: of no known form (CLIP and SigLIP of Hugging Face and open_clip, BERT of Hugging Face); its tensors are {some}, ..."
        )
    return stored, layout


def described(place: str, given: Collection[str] = ()) -> dict[str, Any]:
    """Field of a config -> its value, for a dual encoder as it was published: towers, sizes of its inputs, pixels, tokenizer.

    WeightsError where one of the two towers is not there, or where the folder does not tell heads, activations and pixels (a file alone,
    and open_clip's SigLIP) and they are not among the fields `given` elsewhere. Reads no weights.
    """
    stored, layout = opened(place)
    towers = layout.all_rows(stored.shapes)
    found = {f"model.{name}": value for modality in towers for name, value in sizes.sizes(stored, layout, modality).items()}
    told = {f"model.{modality}.{name}" for modality in MODALITIES for name in ("heads", "activation")} | {"model.image.pixels"}
    if lacking := sorted(told - {*found, *given}):
        raise WeightsError(
            f"{place}: does not tell {', '.join(lacking)}; name a folder with both towers, config.json and preprocessor_config.json, or "
            f"set {' '.join(f'--config.{name}=...' for name in lacking)}"
        )
    shape = {(modality, path): stored.shapes.get(row.theirs, ()) for modality in towers for row in towers[modality] for path in row.ours}
    for modality in towers:
        if len(positions := shape[modality, "positions"]) < 2 or 0 in positions:
            raise WeightsError(f"{place}: has no table of positions in its {modality} tower")
    patches = shape["image", "positions"][-2] - (layout.kind == "clip")
    found["data.image_size"] = math.isqrt(patches) * found["model.image.patch"]
    found["data.context_length"] = shape["text", "positions"][-2]
    found["objective.kind"] = "sigmoid" if layout.kind == "siglip" else "infonce"
    found["data.resample"] = "bicubic"
    if (located(place) / TOKENIZER).is_file():
        found |= {"data.tokenizer": "file", "data.tokenizer_path": f"{place.rstrip('/')}/{TOKENIZER}"}
        found["data.vocab_size"] = Tokenizer.count(found["data.tokenizer_path"])
    return found | {f"model.{modality}.pretrained": place for modality in MODALITIES}


def _tower(
    config: Config, stored: Stored, layout: Layout, modality: Modality, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    rows = layout.all_rows(stored.shapes)
    sizes.check(config, stored, layout, modality)
    _check_names(stored, layout, rows, modality)
    by_name = {row.theirs: row for row in rows[modality]}
    found, wrong = {}, []
    for name, array in stored.read([row.theirs for row in rows[modality]]):
        row = by_name[name]
        try:
            parts = row.form.read(array)
        except (ValueError, IndexError):
            parts = []
        for path, part in zip(row.ours, parts or [array] * len(row.ours), strict=True):
            expected = shapes[f"towers/{modality}/{path}"]
            fitted = _fitted(stored.place, modality, path, part, expected) if path in _RESIZED else part
            if not parts or fitted.shape != expected:
                wrong.append(f"{name} {list(array.shape)} for {path} {list(expected)}")
            found[f"towers/{modality}/{path}"] = fitted
    if wrong:
        raise WeightsError(
            f"{stored.place}: {len(wrong)} tensors of another shape: {_some(wrong)}; is it of the model that config.json names?"
        )
    return found


def _check_names(stored: Stored, layout: Layout, rows: Mapping[Modality, list[Row]], modality: Modality) -> None:
    """WeightsError that lists the tensors of the file that no tower has, and those of the tower that the file has not."""
    known = {row.theirs for tower in rows.values() for row in tower} | {*layout.extra.values(), "logit_bias"}
    unknown = [name for name in stored.shapes if name not in known and not re.fullmatch(layout.ignored, name)]
    missing = [row.theirs for row in rows[modality] if row.theirs not in stored.shapes]
    problems = [f"{len(names)} tensors {what}: {_some(names)}" for names, what in ((unknown, "unknown"), (missing, "missing")) if names]
    if problems:
        raise WeightsError(f"{stored.place}: no {layout.kind} towers as {layout.source} publishes them: {'; '.join(problems)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _extra(stored: Stored, layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    names = {name: path for path, name in layout.extra.items() if path in shapes and name in stored.shapes}
    found = {names[name]: array for name, array in stored.read(list(names))}
    if wrong := [path for path, array in found.items() if array.size != 1]:
        raise WeightsError(f"{stored.place}: {_some(wrong)} must be one number")
    return {path: array.reshape(()) for path, array in found.items()}


def _fitted(place: str, modality: Modality, path: str, array: np.ndarray, expected: tuple[int, ...]) -> np.ndarray:
    """Positions and embeddings at the size that the config wants, where that is another one; of other rank or width as they are."""
    if array.ndim != 2 or array.shape[1:] != expected[1:] or array.shape == expected:
        return array
    rows, wanted = array.shape[0], expected[0]
    if modality == "image":
        return resized_grid(array, expected[0])
    if wanted <= rows:
        return array[:wanted]
    field, what = ("data.context_length", "positions") if path == "positions" else ("data.vocab_size", "tokens in its embedding")
    raise WeightsError(
        f"{place}: has {rows:,} {what}, and the run needs {wanted:,}; "
        + (
            f"set --config.{field}={rows}"
            if path == "positions"
            else "name the tokenizer that belongs to it in --config.data.tokenizer_path"
        )
    )


def resized_grid(positions: np.ndarray, wanted: int) -> np.ndarray:
    """Positions [first + side^2, C] of a square grid, with or without one for a class token before it, for a grid of another side.

    Bicubic with anti-aliasing, as open_clip's resize_pos_embed. An array that is no such grid is returned as it is.
    """
    for first in (0, 1):
        old, new = math.isqrt(len(positions) - first), math.isqrt(wanted - first)
        if old**2 + first == len(positions) and new**2 + first == wanted:
            grid = positions[first:].reshape(old, old, -1)
            grid = np.asarray(jax.image.resize(grid, (new, new, grid.shape[-1]), "bicubic", antialias=True))
            return np.concatenate([positions[:first], grid.reshape(new**2, -1)])
    return positions
