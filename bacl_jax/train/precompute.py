"""What frozen towers make of the training rows, stored once and taken in each step in their place (bacl_jax/data/features.py).

A tower can be stored when all of its parameters but those of its head are frozen: what its trunk makes then depends on the row alone.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bacl_jax import paths
from bacl_jax.config import Config, ConfigError
from bacl_jax.data import features, transforms
from bacl_jax.data.array_record import SUFFIX
from bacl_jax.data.convert import replace, store
from bacl_jax.data.features import FeatureFiles, Index
from bacl_jax.data.source import DataSet
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.errors import DataError
from bacl_jax.mesh import to_global
from bacl_jax.train.step import Trainer
from bacl_jax.types import Trunk

Row = tuple[UInt8[np.ndarray, "S S 3"] | None, tuple[str, ...]]  # picture, where the image tower is stored; captions
_THREADS = 8  # rows are read side by side


def storable(params: Any, frozen: Sequence[str]) -> tuple[str, ...]:
    """The modalities of the towers whose parameters are all frozen, but for those of the head."""
    trained = paths.trained(params, frozen).get("towers", {})
    return tuple(tower for tower in sorted(params["towers"]) if not set(trained.get(tower, {})) - {"head"})


def check_storable(params: Any, frozen: Sequence[str], towers: Sequence[str], folder: str) -> None:
    """ConfigError where features of a tower are stored that is trained below its head."""
    for tower in sorted({*towers} - {*storable(params, frozen)}):
        raise ConfigError(
            f"config.data.features = {folder!r} holds features of the {tower} tower, which config.optim.frozen = {tuple(frozen)!r} leaves "
            f"to train; freeze it with 'towers/{tower}/(?!head/).*', or set --config.data.features=None"
        )


def weights(params: Any, towers: Sequence[str]) -> dict[str, str]:
    """Facts about parameters on the host: a sha256 of each tower's, but for its head's."""
    found = {}
    for tower in towers:
        digest = hashlib.sha256()
        for path, leaf in paths.named(params["towers"][tower]):
            if not path.startswith("head/"):
                value = np.ascontiguousarray(leaf)
                digest.update(f"{path} {value.dtype} {value.shape}".encode())
                digest.update(value.data)
        found[f"weights of the {tower} tower (sha256)"] = digest.hexdigest()
    return found


def opened(config: Config, dataset: DataSet, tokenizer: Tokenizer) -> FeatureFiles | None:
    """The features that config.data.features names; None where it is None. ConfigError where they are of another run's data or towers.

    Their weights are compared later, with those that the run begins with.
    """
    if config.data.features is None:
        return None
    found = FeatureFiles(config.data.features)
    features.check_augmentation(config, found.index.towers)
    found.check(features.facts(config, dataset, tokenizer, found.index.towers))
    return found


def write(trainer: Trainer, params: Any, dataset: DataSet, tokenizer: Tokenizer, out: Path, *, dtype: str, shard_rows: int = 4096) -> Index:
    """Stores what every tower that can be stored makes of the training rows, in the folder `out`, in files of `shard_rows` rows.

    Pictures are cropped as in evaluation; of a row all captions are encoded. A file is written under a hidden name, read back, renamed and
    then listed in features.json: started again after it was stopped at any point, `write` goes on at the first file that is missing.

    Rows are encoded config.eval.batch_size at a time. Cost on disk: dtype's size of (F + P C) for a picture, (F + t C) for a caption.
    Under data.on_error = "skip" a row that cannot be used keeps its error in its place, so that training replaces the same rows.
    Raises ConfigError where no tower can be stored or `out` holds other features, DataError for a row that cannot be used.
    """
    config = trainer.config
    towers = storable(params, config.optim.frozen)
    if not towers:
        raise ConfigError(
            f"config.optim.frozen = {config.optim.frozen!r}: of no tower are all parameters frozen but those of the head; freeze one, as "
            "in --config.optim.frozen=\"('towers/text/(?!head/).*',)\""
        )
    facts = features.facts(config, dataset, tokenizer, towers) | weights(params, towers)
    index = begun(out, Index(facts, towers, dtype, len(dataset.train), shard_rows))
    finished = {shard.name: shard for shard in index.shards}
    encoder = _Encoder(trainer, params, tokenizer, towers)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress, ThreadPoolExecutor(_THREADS) as pool:
        task = progress.add_task("storing features", total=index.rows)
        for number in range(index.files):
            name = f"{out.resolve().name}-{number:05d}-of-{index.files:05d}{SUFFIX}"
            rows = range(number * shard_rows, min((number + 1) * shard_rows, index.rows))
            if name not in finished:
                skipped: Counter[str] = Counter()
                records = encoder.records(dataset, rows, dtype, pool, skipped)
                shown = (record for place, record in enumerate(records) if progress.update(task, completed=rows.start + place + 1) is None)
                finished[name] = store(out / name, shown, skipped)
                index = dataclasses.replace(index, shards=tuple(finished[key] for key in sorted(finished)))
                replace(out / features.INDEX, index.to_json().encode())
            progress.update(task, completed=rows.stop)
    return index


def begun(out: Path, expected: Index) -> Index:
    """The index with the files of an earlier start that need not be written again. ConfigError where the folder holds other features."""
    out.mkdir(parents=True, exist_ok=True)
    for partial in out.glob(f".*{SUFFIX}.partial"):
        partial.unlink()
    if not (out / features.INDEX).exists():
        return expected
    found = features.read_index(out)
    made = found.facts | {"--dtype": found.dtype, "towers": list(found.towers), "rows of a file": found.shard_rows}
    now = expected.facts | {"--dtype": expected.dtype, "towers": list(expected.towers), "rows of a file": expected.shard_rows}
    if differing := features.difference(made, now):
        raise ConfigError(f"--workdir={out} holds features made with {differing}; choose another folder")
    files = [(shard, out / shard.name) for shard in found.shards]
    return dataclasses.replace(expected, shards=tuple(s for s, path in files if path.is_file() and path.stat().st_size == s.bytes))


class _Encoder:
    """Trunks over rows of a source, config.eval.batch_size pictures or captions at a time."""

    def __init__(self, trainer: Trainer, params: Any, tokenizer: Tokenizer, towers: Sequence[str]):
        self._config, self._mesh, self._tokenizer, self._towers = trainer.config, trainer.mesh, tokenizer, towers
        self._size = self._config.eval.batch_size
        if self._size % self._mesh.size:
            raise ConfigError(f"config.eval.batch_size = {self._size}: must divide over the {self._mesh.size} devices")
        self._params = params
        self._trunk = {"image": jax.jit(trainer.model.image_trunk), "text": jax.jit(trainer.model.text_trunk)}

    def records(self, dataset: DataSet, rows: range, dtype: str, pool: ThreadPoolExecutor, skipped: Counter[str]) -> Iterator[bytes]:
        """The records of rows in their order; those that cannot be used are counted by kind."""
        for start in range(rows.start, rows.stop, self._size):
            block = range(start, min(start + self._size, rows.stop))
            yield from self._block(list(pool.map(lambda row: self._read(dataset, row), block)), dtype, skipped)

    def _read(self, dataset: DataSet, row: int) -> Row | DataError:
        data = self._config.data
        try:
            example = dataset.train[row]
            assert example.picture is not None
            image = transforms.crop(example.picture, data.image_size, resample=data.resample) if "image" in self._towers else None
        except DataError as error:
            if data.on_error == "raise":
                raise
            return error
        return image, (example.caption, *example.others)

    def _block(self, rows: list[Row | DataError], dtype: str, skipped: Counter[str]) -> Iterator[bytes]:
        good = [row for row in rows if not isinstance(row, DataError)]
        images = self._images([image for image, _ in good if image is not None])
        texts, lengths = self._texts([caption for _, captions in good for caption in captions])
        place = first = 0
        for row in rows:
            if isinstance(row, DataError):
                skipped[row.kind] += 1
                yield features.encode_error(row)
                continue
            some = slice(first, first + len(row[1]))
            made = {"image": jax.tree.map(lambda x, place=place: x[place], images)} if "image" in self._towers else {}
            if "text" in self._towers:
                made["text"] = jax.tree.map(lambda x, some=some: x[some], texts)
            yield features.encode(made, lengths[some], dtype)
            place, first = place + 1, some.stop

    def _images(self, images: list[np.ndarray]) -> Trunk | None:
        if not images:
            return None
        padded = np.zeros((self._size, *images[0].shape), np.uint8)
        padded[: len(images)] = images
        return self._run("image", padded)

    def _texts(self, captions: list[str]) -> tuple[Trunk | None, np.ndarray]:
        """What the trunk makes of captions, and how many tokens each has."""
        ids, mask = self._tokenizer.encode(captions) if captions else (np.zeros((0, 0), np.int32), np.zeros((0, 0), bool))
        if "text" not in self._towers or not captions:
            return None, mask.sum(1)
        parts = []
        for start in range(0, len(captions), self._size):
            part = [
                np.resize(x[start : start + self._size], (self._size, x.shape[1])) for x in (ids, mask)
            ]  # the rest: again from the first
            parts.append(self._run("text", *part))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts), mask.sum(1)

    def _run(self, tower: str, *inputs: np.ndarray) -> Trunk:
        with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
            made = self._trunk[tower](self._params, *to_global(self._mesh, inputs))
        return jax.tree.map(lambda x: np.asarray(x, np.float32), jax.device_get(made))
