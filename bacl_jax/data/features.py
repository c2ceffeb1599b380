"""Stored features of frozen towers: the folder that bacl_jax.train.precompute fills, and the reader for it.

A folder holds NAME-00000-of-00012.array_record and so on, NAME being the folder's, and features.json: what the features depend on
(`facts`), and rows, bytes and sha256 of every file. Record i of all files is training row i, in the form of safetensors:

    name           content
    image.pooled   [F], the input of the image tower's head       image.tokens   [P, C]
    text.pooled    [n, F], of the row's n captions                text.tokens    [n, t, C], t the tokens of the longest of them
    error          uint8, JSON with kind and message, and nothing else: why the row cannot be used
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from bacl_jax.config import Config, ConfigError, to_dict
from bacl_jax.data import array_record
from bacl_jax.data.array_record import OPEN_FILES, Shard
from bacl_jax.data.cache import Cache
from bacl_jax.data.source import DataSet
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.errors import DataError
from bacl_jax.types import Trunk

INDEX = "features.json"
DTYPES = ("float16", "float32")
_ROWS = 16  # rows of the training source that go into its digest
_REMEDY = "make them again with launch.precompute, or set --config.data.features=None"
_AUGMENTATION = {"augment_crop": "square", "augment_scale": 0.0, "augment_shift": 0.0, "augment_flip": False}


@dataclasses.dataclass(frozen=True)
class Index:
    """What features.json holds.

    facts: name -> what the features depend on. towers: the modalities whose features are stored. rows: of the training source.
    shard_rows: rows of a file. shards: the finished files, in order.
    """

    facts: dict[str, Any]
    towers: tuple[str, ...]
    dtype: str
    rows: int
    shard_rows: int
    shards: tuple[Shard, ...] = ()

    @property
    def files(self) -> int:
        """How many files the folder has when it is complete."""
        return -(-self.rows // self.shard_rows)

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "complete": len(self.shards) == self.files}, indent=1) + "\n"


def read_index(folder: Path) -> Index:
    """ConfigError where there is no features.json in the folder, or where it is damaged."""
    try:
        content = json.loads((folder / INDEX).read_bytes())
        shards = tuple(Shard(**shard) for shard in content.pop("shards"))
        complete = content.pop("complete")
        index = Index(**content | {"towers": tuple(content["towers"])}, shards=shards)
        if complete != (len(shards) == index.files) or index.dtype not in DTYPES or not isinstance(index.facts, dict):
            raise ValueError("not what launch.precompute writes")
    except OSError as error:
        raise ConfigError(
            f"config.data.features: {folder / INDEX} cannot be read ({error.strerror}); name a folder that launch.precompute wrote"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"config.data.features: {folder / INDEX} is damaged ({error!r}); {_REMEDY}") from None
    return index


class FeatureFiles:
    """What is stored of each training row. Thread safe. Opening reads one small file; a look-up is one read at a known place."""

    def __init__(self, folder: str):
        self.folder, self.index = Path(folder), read_index(Path(folder))
        if len(self.index.shards) != self.index.files:
            raise ConfigError(
                f"config.data.features: {folder} is not finished, {len(self.index.shards)} of {self.index.files} files are there; "
                "the same launch.precompute goes on"
            )
        self._readers: Cache[Any] = Cache(OPEN_FILES)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """The arrays of a row by name. DataError where the row was left out for its error.

        ConfigError where the files are damaged, whatever data.on_error says: the rows themselves may be sound.
        """
        number, position = divmod(row, self.index.shard_rows)
        shard = self.index.shards[number]
        file = str(self.folder / shard.name)
        try:
            reader = self._readers.get(number, lambda: (array_record.open_shard(file, shard, index=INDEX, remedy=_REMEDY), 1))
            [content] = reader.read([position])
            found = safetensors.load(content)
        except DataError as error:
            raise ConfigError(f"config.data.features: {error}") from error
        except (RuntimeError, ValueError, IndexError, SafetensorError) as error:
            raise ConfigError(f"config.data.features: {file}, row {position + 1}: not readable ({error}); {_REMEDY}") from error
        if "error" in found:
            raise DataError(**json.loads(found["error"].tobytes()))
        return found

    def check(self, facts: Mapping[str, Any]) -> None:
        """ConfigError that names the first of `facts` that is not what the features were made with."""
        if differing := difference(self.index.facts, facts):
            raise ConfigError(f"config.data.features = {str(self.folder)!r}: made with {differing}; {_REMEDY}")


def difference(made: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first of the facts `now` that is another one in `made`, in words; empty where none is."""
    for name, value in now.items():
        if made.get(name) != value:
            return f"{name} {json.dumps(made.get(name))}, but now it is {json.dumps(value)}"
    return ""


def facts(config: Config, dataset: DataSet, tokenizer: Tokenizer, towers: Sequence[str]) -> dict[str, Any]:
    """What the stored features depend on, but for the weights: name -> what JSON can hold."""
    data, found = config.data, {"training rows": len(dataset.train), "some rows (sha256)": _rows_digest(dataset)}
    found["model.dtype"] = config.model.dtype
    if "image" in towers:
        found |= {"data.image_size": data.image_size, "data.resample": data.resample}
    if "text" in towers:
        digest = hashlib.sha256(json.dumps(tokenizer.to_json()).encode()).hexdigest()
        found |= {"data.context_length": data.context_length, "the tokenizer (sha256)": digest}
    for tower in towers:
        settings = to_dict(getattr(config.model, tower))
        found |= {f"model.{tower}.{name}": value for name, value in settings.items() if name != "pretrained"}
    return found


def _rows_digest(dataset: DataSet) -> str:
    """Of captions and keys of a few rows spread evenly; one that cannot be read is not in it, for it may be mended."""
    digest, n = hashlib.sha256(), len(dataset.train)
    for row in sorted({round(place) for place in np.linspace(0, n - 1, min(n, _ROWS))}):
        try:
            example = dataset.train[row]
        except DataError:
            continue
        digest.update(json.dumps([row, example.caption, *example.others, example.anchor_key]).encode())
    return digest.hexdigest()


def check_augmentation(config: Config, towers: Sequence[str]) -> None:
    """ConfigError where pictures would be augmented whose features are stored: those are of the centre crop."""
    if "image" not in towers:
        return
    wrong = [name for name, value in _AUGMENTATION.items() if getattr(config.data, name) != value]
    if wrong:
        found = ", ".join(f"config.data.{name} = {getattr(config.data, name)!r}" for name in wrong)
        needed = " ".join(f"--config.data.{name}={value}" for name, value in _AUGMENTATION.items() if name in wrong)
        raise ConfigError(f"{found}: with stored image features pictures are not augmented; set {needed}, or --config.data.features=None")


def encode(towers: Mapping[str, Trunk], lengths: np.ndarray, dtype: str) -> bytes:
    """The record of a row. text: [n, ...]; lengths: valid tokens of each of the n captions, what comes after the longest is left out.

    DataError of kind "features" where a number is not finite in `dtype`.
    """
    arrays = {}
    for tower, trunk in towers.items():
        assert trunk.tokens is not None
        arrays[f"{tower}.pooled"] = trunk.pooled
        arrays[f"{tower}.tokens"] = trunk.tokens[:, : int(lengths.max())] if tower == "text" else trunk.tokens
    with np.errstate(over="ignore"):  # looked at below
        arrays = {name: np.ascontiguousarray(x, dtype) for name, x in arrays.items()}
    if bad := [name for name, x in arrays.items() if not np.isfinite(x).all()]:
        raise DataError(f"{', '.join(bad)}: not finite as {dtype}; take --dtype=float32, or look at the weights", kind="features")
    return safetensors.save(arrays)


def encode_error(error: DataError) -> bytes:
    """The record of a row that cannot be used."""
    content = json.dumps({"message": str(error), "kind": error.kind, "shard": error.shard}).encode()
    return safetensors.save({"error": np.frombuffer(content, np.uint8)})


def of_caption(found: Mapping[str, np.ndarray], caption: int, context_length: int) -> dict[str, np.ndarray]:
    """The arrays of a row's caption out of those of all its captions, with tokens [T, C]; those of the picture as they are."""
    chosen = {name: x[caption] if name.startswith("text.") else x for name, x in found.items()}
    if "text.tokens" in chosen:
        tokens = chosen["text.tokens"]
        chosen["text.tokens"] = np.pad(tokens, ((0, context_length - len(tokens)), (0, 0)))
    return chosen


def stacked(rows: Sequence[Mapping[str, np.ndarray]], *, tokens: bool) -> dict[str, Trunk]:
    """The stored part of a batch, of each row's arrays; tokens: False: they are left out."""
    modalities = sorted({name.partition(".")[0] for name in rows[0]})
    stack = lambda name: np.stack([row[name] for row in rows])  # noqa: E731
    return {m: Trunk(pooled=stack(f"{m}.pooled"), tokens=stack(f"{m}.tokens") if tokens else None) for m in modalities}
