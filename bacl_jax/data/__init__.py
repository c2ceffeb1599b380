"""Data: `load(config)` gives a DataSet, `batches(...)` the training pipeline over it."""

from collections.abc import Callable

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import emoji, manifest, mixture, stream
from bacl_jax.data.array_record import ArrayRecordFiles
from bacl_jax.data.loader import batches, eval_batches
from bacl_jax.data.order import PartnerList, PartnerLists
from bacl_jax.data.parquet import ParquetFiles
from bacl_jax.data.records import ManifestError
from bacl_jax.data.source import DataError, DataSet, EvalSplit, Example, OnSkip, Source
from bacl_jax.data.stream import Records
from bacl_jax.data.tfds_source import TfdsRows
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.data.webdataset import TarShards

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

_READERS = {"emoji": emoji.load, "manifest": manifest.load}  # look at every row at once
_RECORDS: dict[str, Callable[[str, DataConfig, OnSkip | None], Records]] = {  # read rows as they are needed
    "webdataset": lambda path, c, on_skip: TarShards(path, c.index),
    "parquet": lambda path, c, on_skip: ParquetFiles(path, c.image_column, c.caption_column, c.id_column, on_skip=on_skip),
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
    if config.kind in _READERS:
        return _READERS[config.kind](config, on_skip)
    return stream.assemble(open_records(config, on_skip), config, name=f"{config.kind} {config.path}", on_skip=on_skip)


def open_records(config: DataConfig, on_skip: OnSkip | None = None) -> Records:
    """The stored rows that `config` names, one of the kinds that are read as they are needed."""
    if config.kind not in _RECORDS:
        raise ConfigError(f"data.kind = {config.kind!r}; allowed: {', '.join(_RECORDS)}")
    if not config.path:
        raise ConfigError(f"data.path = None; data.kind = {config.kind!r} needs the path of its files, or the name of the data set")
    return _RECORDS[config.kind](config.path, config, on_skip if config.on_error == "skip" else None)
