"""Data: `load(config)` gives a DataSet, `batches(...)` the training pipeline over it."""

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import emoji, manifest
from bacl_jax.data.loader import batches, eval_batches
from bacl_jax.data.order import PartnerList, PartnerLists
from bacl_jax.data.records import ManifestError
from bacl_jax.data.source import DataError, DataSet, EvalSplit, Example, OnSkip, Source
from bacl_jax.data.tokenizer import Tokenizer

__all__ = [
    "DataError",
    "DataSet",
    "EvalSplit",
    "Example",
    "ManifestError",
    "PartnerList",
    "PartnerLists",
    "Source",
    "Tokenizer",
    "batches",
    "eval_batches",
    "load",
]

_READERS = {"emoji": emoji.load, "manifest": manifest.load}


def load(config: DataConfig, on_skip: OnSkip | None = None) -> DataSet:
    """Read the data set that `config.kind` names.

    on_skip: called with the error of each row left out under data.on_error = "skip" (they are logged and counted in any case).
    Raises ConfigError for settings and DataError for data that cannot be used.
    """
    if config.kind not in _READERS:
        raise ConfigError(f"data.kind = {config.kind!r}; allowed: {', '.join(_READERS)}")
    return _READERS[config.kind](config, on_skip)
