"""Libraries that only some data need, imported when these are read."""

import importlib
from typing import Any

from bacl_jax.settings import ConfigError


def library(name: str, what: str, install: str = "-r requirements-media.txt") -> Any:
    """The module; ConfigError, with the remedy, where it is not installed. what: needs it; install: what pip is told."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is missing, which {what} needs: pip install {install}") from error
