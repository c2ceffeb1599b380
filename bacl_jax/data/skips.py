"""Rows that cannot be used: raised, or left out, logged and counted, by data.on_error."""

import logging
from collections import Counter

from bacl_jax.data.source import OnSkip
from bacl_jax.errors import DataError

log = logging.getLogger("bacl_jax")


class Skips:
    """Applies data.on_error: raises, or counts, logs and reports."""

    def __init__(self, on_error: str, on_skip: OnSkip | None):
        self._raise = on_error == "raise"
        self._on_skip = on_skip
        self.counts: Counter[str] = Counter()

    def record(self, error: DataError) -> None:
        if self._raise:
            raise error
        self.counts[error.kind] += 1
        log.warning("left out: %s", error)
        if self._on_skip is not None:
            self._on_skip(error)

    def guard(self, function, *args):
        """The function's result, or None if it raised a DataError that is to be skipped."""
        try:
            return function(*args)
        except DataError as error:
            self.record(error)
            return None
