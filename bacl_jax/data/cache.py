"""A bounded store of what is dear to make: open readers, decoded parts of files."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class _Entry(Generic[V]):
    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while the value is made
        self.made: tuple[V, int] | None = None  # (value, size)


class Cache(Generic[V]):
    """Thread-safe store of values up to `limit` in total size; what was not asked for longest leaves first.

    Threads that ask for one key at once wait for one of them to make it, and different keys are made side by side. The newest value
    stays even if it alone is larger than the limit. A copy (in another process, for one) starts empty.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a cache needs a limit of at least 1, found {limit}")
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry[V]] = OrderedDict()
        self._used = 0

    def __reduce__(self) -> tuple[type["Cache[V]"], tuple[int]]:
        return type(self), (self._limit,)

    def get(self, key: Hashable, make: Callable[[], tuple[V, int]]) -> V:
        """The value of `key`; make() gives (value, its size) where it is not there. What make raises is raised, and not remembered."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.made is None:
                try:
                    made = make()
                except BaseException:
                    self._forget(key, entry)
                    raise
                self._keep(key, entry, made)
                return made[0]
            return entry.made[0]

    def _forget(self, key: Hashable, entry: _Entry[V]) -> None:
        with self._lock:
            if self._entries.get(key) is entry:
                del self._entries[key]

    def _keep(self, key: Hashable, entry: _Entry[V], made: tuple[V, int]) -> None:
        """Counts a value that was just made, and lets the oldest ones go until the rest fits."""
        with self._lock:
            entry.made = made
            if self._entries.setdefault(key, entry) is not entry:  # another thread makes it anew, after a failure
                return
            self._used += made[1]
            for name, old in list(self._entries.items()):
                if self._used <= self._limit:
                    break
                if old.made is not None and old is not entry:
                    del self._entries[name]
                    self._used -= old.made[1]
