"""Tar shards as img2dataset and webdataset write them, read row by row in any order.

A row is the members of one stem (the path up to the first dot of the base name): a picture (.jpg, .jpeg, .png, .webp) and its caption in
.txt, or, where there is none, under "caption" in .json. Both are UTF-8. Other members are ignored. Rows are found by an index
(`tar_index.build`, `python -m launch.index`).

Dimension legend: n rows, S shards.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from bacl_jax.data import files, storage, tar_index, tar_members, tar_scan
from bacl_jax.data.source import OnSkip
from bacl_jax.data.stream import Record
from bacl_jax.errors import DataError

_PAGE = 256  # rows; a table of the shard of each page's first row makes look-up independent of n and S
_PLAIN = 90  # characters of a stem that every form of header holds whole, so that both members of a row must have it
_NEAR = 64 * 1024  # bytes between picture and caption that are read along, in place of a second request


class TarShards:
    """Random access to the rows of tar shards; a `bacl_jax/data/stream.py:Records`.

    path:    local or remote shards, as `files.expand` reads it, or a list of locations. The index may hold further shards; these are
             ignored.
    index:   the index file, local; by default `shards.index` in the folder that the shards share.
    verify:  compare the size of each shard with the index at once, as is done before a run; a remote shard costs a request.
    on_skip: called with the error of each shard that fails this comparison; None raises the first one. The rows of such a shard keep
             their numbers, so that the order of the others stays as it was, and raise the error when they are read.

    keep_bytes: of remote shards that are kept in memory, for a block shuffle (`storage.Reader`).

    Rows lie shard by shard in the path's order. The key of a row is "<shard>/<stem>", the shard named below the folder that was indexed.

    Raises DataError when opened: "path", "missing" (`files.expand`), "index" (none, damaged, lacks a shard), "changed" (a shard's size),
    "empty" (no row).
    Cost: O(S) and 8 bytes a page of 256 rows; the rows stay in the mapped file. Copies for other processes open it anew, with the shards
    of the original; "changed" if it was built anew meanwhile.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        index: str | None = None,
        *,
        verify: bool = True,
        on_skip: OnSkip | None = None,
        keep_bytes: int = 0,
    ):
        locations = files.expand(path, ".tar") if isinstance(path, str) else list(path)
        self._file = index or tar_index.default_path(locations)
        opened = tar_index.read(self._file)
        self._rows, self._checksum = opened.rows, opened.checksum
        chosen = self._choose(opened, locations)
        self._locations, self._shards = locations, [opened.shards[i] for i in chosen]
        self._changed: dict[int, str] = {}  # shard -> what was found at opening
        if verify:
            self._verify(on_skip)
        counts = np.array([shard.rows for shard in opened.shards], np.int64)
        begins = np.cumsum(counts) - counts
        self._stored = begins[chosen].tolist()  # the shard's first row in the index
        self._ends = np.cumsum(counts[chosen])  # and the row after its last one here
        self._pages = np.searchsorted(self._ends, np.arange(0, len(self) + _PAGE, _PAGE), side="right")
        self._keep_bytes, self._reader = keep_bytes, storage.Reader(keep_bytes)
        if not len(self):
            raise DataError(f"{self._file}: no row in these shards (left out: {dict(opened.left_out)}); correct them", kind="empty")

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self._locations, self._file, self._checksum, self._changed, self._keep_bytes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        """Reads headers and picture, and the caption, in one request if they are near each other, else in two.

        Raises IndexError outside [0, n), and DataError with `shard`: "missing", "remote" (`storage.Reader.read`), "changed" (the shard is
        another than the one indexed), "encoding" (the caption is not UTF-8), "syntax" (the JSON file is none), "no_caption" (it has none).
        """
        shard, row = self._locate(index)
        if shard in self._changed:
            raise DataError(self._changed[shard], kind="changed", shard=self._locations[shard])
        (head, image, image_size), (caption, caption_size, is_json) = tar_scan.unpack(self._rows[row])
        first, second = (head, image + image_size), (caption - tar_members.BLOCK, caption + caption_size)
        if second[0] < 0 or max(first[1], second[1]) > self._shards[shard].size:
            raise self._error_of_change(shard, "the index names bytes outside of it")
        picture, text = self._read(shard, first, second)
        stem, _ = tar_scan.split(self._member(shard, picture, image - head, image_size))
        written = tar_scan.split(self._member(shard, text, tar_members.BLOCK, caption_size))
        if len(stem) <= _PLAIN and stem.isascii() and written != (stem, "json" if is_json else "txt"):
            raise self._error_of_change(shard, f"picture {tar_members.shown(stem)} and caption {tar_members.shown('.'.join(written))}")
        where = f"{self._locations[shard]}, row {tar_members.shown(stem)}"
        try:
            words = _caption(text[tar_members.BLOCK :], is_json, where)
        except DataError as error:
            raise DataError(str(error), kind=error.kind, shard=self._locations[shard]) from error
        return Record(picture[image - head :], (words,), f"{self._shards[shard].name}/{stem}", self._locations[shard])

    def _choose(self, opened: tar_index.Index, locations: list[str]) -> list[int]:
        """Each location's shard in the index: that with the longest name which ends the location."""
        known = {shard.name: i for i, shard in enumerate(opened.shards)}
        chosen = []
        for location in locations:
            parts = location.split("/")
            place = next((known[name] for i in range(len(parts)) if (name := "/".join(parts[i:])) in known), None)
            if place is None:
                raise DataError(f"{self._file}: does not hold {location}; {tar_index.REMEDY}", kind="index", shard=location)
            chosen.append(place)
        return chosen

    def _verify(self, on_skip: OnSkip | None) -> None:
        for place, (location, shard, found) in enumerate(zip(self._locations, self._shards, storage.sizes(self._locations), strict=True)):
            if isinstance(found, DataError):
                error = found if shard.size >= 0 or found.kind != "missing" else None
            elif found != shard.size:
                expected = f"{shard.size:,} when it was indexed" if shard.size >= 0 else "it could not be read when it was indexed"
                error = DataError(f"{location}: {found:,} bytes, {expected}; {tar_index.REMEDY}", kind="changed", shard=location)
                self._changed[place] = str(error)
            else:
                error = None
            if error is not None:
                if on_skip is None:
                    raise error
                on_skip(error)

    def _locate(self, index: int) -> tuple[int, int]:
        """(shard, row in the index)."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        page = index // _PAGE
        shard = bisect_right(self._ends, index, int(self._pages[page]), min(int(self._pages[page + 1]) + 1, len(self._ends)))
        return shard, self._stored[shard] + index - (int(self._ends[shard - 1]) if shard else 0)

    def _read(self, shard: int, first: tuple[int, int], second: tuple[int, int]) -> tuple[bytes, bytes]:
        location = self._locations[shard]
        start, end = min(first[0], second[0]), max(first[1], second[1])
        if end - start > first[1] - first[0] + second[1] - second[0] + _NEAR:
            return self._reader.read(location, *first), self._reader.read(location, *second)
        content = self._reader.read(location, start, end)
        return content[first[0] - start : first[1] - start], content[second[0] - start : second[1] - start]

    def _member(self, shard: int, content: bytes, data: int, size: int) -> str:
        """The name of the member, whose headers must say what the index says."""
        try:
            member = tar_members.next_member(lambda start, end: content[start:end], 0, len(content))
        except DataError as error:
            member, found = None, str(error)
        else:
            found = "other members"
        if member is None or (member.data, member.size) != (data, size) or len(content) != data + size:
            raise self._error_of_change(shard, found)
        return member.name

    def _error_of_change(self, shard: int, found: str) -> DataError:
        location = self._locations[shard]
        return DataError(f"{location}: changed since it was indexed ({found}); {tar_index.REMEDY}", kind="changed", shard=location)


def _reopen(locations: list[str], index: str, checksum: int, changed: dict[int, str], keep_bytes: int) -> TarShards:
    records = TarShards(locations, index, verify=False, keep_bytes=keep_bytes)
    records._changed = changed
    if records._checksum != checksum:
        raise DataError(f"{index}: was built anew while it was in use; start again", kind="changed", shard=index)
    return records


def _caption(content: bytes, is_json: bool, where: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: the caption is not UTF-8 ({error}); save it as UTF-8", kind="encoding") from error
    if not is_json:
        return text
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: the .json file is no JSON ({error}); correct it or add a .txt file", kind="syntax") from error
    caption = fields.get("caption") if isinstance(fields, dict) else None
    if not isinstance(caption, str):
        raise DataError(f'{where}: no text under "caption" in the .json file; add it or a .txt file', kind="no_caption")
    if any("\ud800" <= letter <= "\udfff" for letter in caption):
        raise DataError(f"{where}: the caption holds half a surrogate pair; save it as UTF-8", kind="encoding")
    return caption
