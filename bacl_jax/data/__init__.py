"""Data: `load(config)` gives a DataSet, `batches(...)` the training pipeline over it."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import clips, emoji, manifest, mixture, sprites, stamps, stream
from bacl_jax.data.array_record import ArrayRecordFiles
from bacl_jax.data.loader import batches, eval_batches
from bacl_jax.data.order import PartnerList, PartnerLists
from bacl_jax.data.parquet import ParquetFiles
from bacl_jax.data.records import ManifestError
from bacl_jax.data.source import DataSet, EvalSplit, Example, OnSkip, Source
from bacl_jax.data.stream import Records
from bacl_jax.data.tfds_source import TfdsRows
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.data.webdataset import TarShards
from bacl_jax.errors import DataError

__all__ = [
    "DataError",
    "DataSet",
    "EvalSplit",
    "Example",
    "ManifestError",
    "PartnerList",
    "PartnerLists",
    "Records",
    "Source",
    "Tokenizer",
    "batches",
    "eval_batches",
    "load",
    "open_records",
]

log = logging.getLogger("bacl_jax")

_MIB = 2**20
_READERS = {  # look at every row at once
    "emoji": emoji.load,
    "manifest": manifest.load,
    "clips": clips.load,
    "stamps": stamps.load,
    "sprites": sprites.load,
}
_RECORDS: dict[str, Callable[[str, DataConfig, OnSkip | None], Records]] = {  # read rows as they are needed
    "webdataset": lambda path, c, on_skip: TarShards(
        path, c.index, on_skip=on_skip, keep_bytes=c.cache_mib * _MIB * (c.shuffle == "block")
    ),
    "parquet": lambda path, c, on_skip: ParquetFiles(
        path, c.image_column, c.caption_column, c.id_column, on_skip=on_skip, cache_bytes=c.cache_mib * _MIB
    ),
    "array_record": lambda path, c, on_skip: ArrayRecordFiles(path),
    "tfds": lambda path, c, on_skip: TfdsRows(path, c.split, c.image_column, c.caption_column, c.folder, key_feature=c.id_column),
}


def load(config: DataConfig, on_skip: OnSkip | None = None) -> DataSet:
    """Read the data set that `config.kind` names.

    on_skip: called with the error of each row left out under data.on_error = "skip" (they are logged and counted in any case).
    Raises ConfigError for settings and DataError for data that cannot be used.
    """
    if config.kind == "mixture":
        return mixture.load(config, on_skip, load)
    left_out: list[DataError] = []

    def skipped(error: DataError) -> None:
        left_out.append(error)
        if on_skip is not None:
            on_skip(error)

    if config.kind in _READERS:
        dataset = _READERS[config.kind](config, skipped)
    else:
        dataset = stream.assemble(open_records(config, skipped), config, name=f"{config.kind} {config.path}", on_skip=skipped)
        if left_out:
            log.warning("%s: %d left out: %s", dataset.name, len(left_out), dict(Counter(error.kind for error in left_out)))
    return dataclasses.replace(dataset, left_out=tuple(left_out))


def open_records(config: DataConfig, on_skip: OnSkip | None = None) -> Records:
    """The stored rows that `config` names, of any kind but a mixture; of a manifest with splits and of the emoji those of data.split.

    on_skip: called with the error of each file that is left out as a whole under data.on_error = "skip" (they are logged in any case).
    """

    def skipped(error: DataError) -> None:
        log.warning("left out: %s", error)
        if on_skip is not None:
            on_skip(error)

    if config.kind == "emoji":
        return emoji.records(config)
    if config.kind == "manifest":
        return manifest.records(config, on_skip)
    if config.kind not in _RECORDS:
        raise ConfigError(f"data.kind = {config.kind!r}; allowed: emoji, manifest, {', '.join(_RECORDS)}")
    if not config.path:
        raise ConfigError(f"data.path = None; data.kind = {config.kind!r} needs the path of its files, or the name of the data set")
    return _RECORDS[config.kind](config.path, config, skipped if config.on_error == "skip" else None)
