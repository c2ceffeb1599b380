"""Libraries that only some data need, imported when these are read."""

import importlib
from typing import Any

from bacl_jax.settings import ConfigError


def library(name: str, what: str) -> Any:
    """The module; ConfigError, with the remedy, where it is not installed. what: is read with it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is missing, which reads {what}: pip install -r requirements-media.txt") from error
