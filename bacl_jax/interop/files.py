"""Published weights on the disk: safetensors of a Hugging Face folder or of open_clip, read strictly. Nothing is executed."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from bacl_jax.config import ConfigError
from bacl_jax.data.files import located

_CONFIGS = ("open_clip_config.json", "config.json")
_WEIGHTS = ("open_clip_model.safetensors", "model.safetensors")
_INDEX = "model.safetensors.index.json"
_FILE = re.compile(r"[\w.-]+\.safetensors")
_PICKLES = (b"PK\x03\x04", b"\x80")  # torch.save writes a zip of pickles, formerly a pickle
_LARGEST_JSON = 2**26
_TYPES = ("F64", "F32", "F16", "BF16")  # safetensors' names of what is read


class WeightsError(ConfigError):
    """Weights that cannot be used. The message is one line that names the file, what is wrong and what to do."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """Published weights: names and shapes are known, arrays are read when asked for.

    place:  what the user named. config: of config.json or open_clip_config.json, empty where there is none.
    pixels: mean and standard deviation by which the model wants pixels normalised, where the folder says so.
    """

    place: str
    config: Mapping[str, Any]
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None
    shapes: Mapping[str, tuple[int, ...]]
    _files: Mapping[str, Path]

    def read(self, names: Iterator[str] | list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, float32 array) of each. WeightsError where a value is no finite number. Memory: one array at a time."""
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for name in names:
                path = self._files[name]
                if path not in opened:
                    opened[path] = stack.enter_context(_open(path))
                if (kind := opened[path].get_slice(name).get_dtype()) not in _TYPES:
                    raise WeightsError(f"{path}: {name} is of type {kind}; known: {', '.join(_TYPES)}")
                yield name, _finite(path, name, opened[path].get_tensor(name).astype(np.float32))


def open_weights(place: str) -> Stored:
    """The weights of a folder as Hugging Face and open_clip publish them, or of a .safetensors file (no config file is read with it).

    Raises WeightsError where they are missing, damaged or a pickle.
    """
    path = located(place)
    folder = path.is_dir()
    files = _of_folder(place, path) if folder else [path]
    shapes, where = {}, {}
    for file in files:
        with _open(file) as opened:
            for name in opened.keys():  # noqa: SIM118, it is no mapping
                if not name.isprintable():
                    raise WeightsError(f"{file}: {name!a} is no name of a tensor; fetch it again")
                if name in where:
                    raise WeightsError(f"{place}: {name} is both in {where[name].name} and in {file.name}; fetch the folder again")
                shapes[name], where[name] = tuple(opened.get_slice(name).get_shape()), file
    if not shapes:
        raise WeightsError(f"{place}: holds no tensor")
    config = next((read_json(path / name) for name in _CONFIGS if folder and (path / name).is_file()), {})
    return Stored(place, config, _pixels(path, config) if folder else None, shapes, where)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. WeightsError where there is none."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise WeightsError(f"{path}: {path.stat().st_size:,} bytes are too many for a {path.name}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: no JSON ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: holds no JSON object; fetch it again")
    return found


def _of_folder(place: str, folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        names = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) and _FILE.fullmatch(name) for name in names.values()):
            raise WeightsError(f"{folder / _INDEX}: weight_map must map each tensor to a .safetensors file of this folder; fetch it again")
        return [folder / name for name in sorted(set(names.values()))]
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickles:
        raise _pickle(pickles[0])
    raise WeightsError(f"{place}: has none of {', '.join((*_WEIGHTS, _INDEX))}; name a folder of Hugging Face or of open_clip, or a file")


def _open(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start.startswith(_PICKLES) and not _is_safetensors(path):
            raise _pickle(path)
        return safe_open(path, framework="numpy")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged, or no safetensors file ({error}); fetch it again") from error


def _is_safetensors(path: Path) -> bool:
    """Whether the file's header is one: its first bytes, a length, may begin as a pickle's do."""
    try:
        with safe_open(path, framework="numpy"):
            return True
    except SafetensorError:
        return False


def _pickle(path: Path) -> WeightsError:
    return WeightsError(
        f"{path}: a pickle, which can execute anything when it is read; where torch is installed convert it: "
        f"python -c \"import torch, safetensors.torch as s; s.save_model(w, 'model.safetensors') if hasattr("
        f"w := torch.load('{path}', weights_only=True), 'parameters') else s.save_file("
        "{k: v.contiguous().clone() for k, v in w.get('state_dict', w).items()}, 'model.safetensors')\""
    )


def _finite(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if bad := array.size - np.count_nonzero(np.isfinite(array)):
        raise WeightsError(f"{path}: {name} has {bad:,} of {array.size:,} values that are not finite; fetch it again")
    return array


def _pixels(folder: Path, config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation, of preprocessor_config.json, of processor_config.json (transformers 5) or of open_clip's own."""
    alone, inside = folder / "preprocessor_config.json", folder / "processor_config.json"
    if alone.is_file():
        found = read_json(alone)
    else:
        found = (read_json(inside).get("image_processor") if inside.is_file() else None) or config.get("preprocess_cfg") or {}
    if not isinstance(found, dict):
        return None
    mean, deviation = found.get("image_mean", found.get("mean")), found.get("image_std", found.get("std"))
    if mean is None or deviation is None:
        return None
    if not all(isinstance(one, list) and all(isinstance(x, int | float) for x in one) for one in (mean, deviation)):
        raise WeightsError(f"{folder}: the pixels' mean {mean!r} and deviation {deviation!r} must be lists of numbers")
    return tuple(mean), tuple(deviation)
