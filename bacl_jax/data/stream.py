"""Data sets too large to look at row by row beforehand: stored pictures and captions, read when a batch needs them.

Dimension legend: n rows in all, of which validation and test are kept out of training.
"""

import dataclasses
from typing import Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True)
class Record:
    """One row as it is stored.

    image:    the encoded picture (JPEG, PNG, WebP, ...), whole and not looked at.
    captions: as stored, one or more.
    key:      names the source image: rows with one key hold the same picture.
    """

    image: bytes
    captions: tuple[str, ...]
    key: str


@runtime_checkable
class Records(Protocol):
    """Random access to stored rows. `records[i]` is thread safe, opens files when it needs them, and is a pure function of i in [0, len).

    It raises DataError with `kind` (one of docs/data.md) and `shard` (the file that holds the row) where the row cannot be used.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
