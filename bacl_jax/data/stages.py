"""Where the readers of the input pipeline spend their time."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Literal

Stage = Literal["reading", "decoding", "tokenising"]


class Stages:
    """Seconds by stage, summed over all readers. Thread safe.

    reading:    bytes and captions from files or a remote; of pictures that are kept in memory, none.
    decoding:   pixels from bytes, cropping and scaling included.
    tokenising: token ids and ids of captions.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[Stage, float] = {"reading": 0.0, "decoding": 0.0, "tokenising": 0.0}

    @contextlib.contextmanager
    def spent(self, stage: Stage) -> Iterator[None]:
        """Counts the time inside the block, failures included."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            with self._lock:
                self._seconds[stage] += seconds

    def seconds(self) -> dict[Stage, float]:
        """The sums so far."""
        with self._lock:
            return dict(self._seconds)
