"""What a tar shard holds, from its headers alone: a row is the members of one stem, a picture and its caption.

Dimension legend: n accepted rows of the shard, 4 = head, size, caption, bits (docs of `pack`).
"""

import dataclasses
import re

import numpy as np
from jaxtyping import UInt32

from bacl_jax.data import storage
from bacl_jax.data.tar_members import BLOCK, Member, members, shown, windowed
from bacl_jax.errors import DataError

PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")
LARGEST_PICTURE, LARGEST_CAPTION = 2**32 - 1, 2**24 - 1  # bytes, what a row can hold
LARGEST_SHARD = 2**32 * BLOCK
_WINDOW, _REMOTE_WINDOW = 8 * 1024, 4 * 2**20  # bytes read at once: the headers between two pictures; many pictures with one request
_HOSTILE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|^/|(?:^|/)\.\.(?:/|$)")


@dataclasses.dataclass(frozen=True)
class Scan:
    """rows: of the shard, in the order of their first members. left_out: kind -> (how often, the first message)."""

    rows: UInt32[np.ndarray, "n 4"]
    left_out: dict[str, tuple[int, str]]


@dataclasses.dataclass(slots=True)
class _Row:
    image: Member | None = None
    txt: Member | None = None
    json: Member | None = None
    fault: tuple[str, str] | None = None  # kind, message


def pack(image: Member, caption: Member, is_json: bool) -> tuple[int, int, int, int]:
    """A row of the index, uint32 each: (block of the picture's first header, bytes of the picture, block of the caption's content, bits).

    bits: 0-23 bytes of the caption, 24-30 blocks from the first header to the picture's content, 31 set if the caption is in a JSON file.
    """
    bits = caption.size | (image.data - image.head) // BLOCK << 24 | is_json << 31
    return image.head // BLOCK, image.size, caption.data // BLOCK, bits


def unpack(row: UInt32[np.ndarray, " 4"]) -> tuple[tuple[int, int, int], tuple[int, int, bool]]:
    """((start of headers, start of picture, its bytes), (start of caption, its bytes, whether it is JSON)), offsets in bytes."""
    head, size, caption, bits = row.tolist()
    return (head * BLOCK, (head + (bits >> 24 & 127)) * BLOCK, size), (caption * BLOCK, bits & LARGEST_CAPTION, bool(bits >> 31))


def scan(location: str, name: str, size: int) -> Scan:
    """Rows and faults of a shard of `size` bytes. Faults of single rows leave these out; one that hides where the next member starts ends
    the walk, and the rows before it stay. Raises DataError only where the shard cannot be read (kinds "missing", "remote").

    Cost: reads the headers (of remote shards all of it, in pieces of 4 MiB); memory of the shard's row list.
    """
    reader = storage.Reader()
    read = windowed(lambda start, end: reader.read(location, start, end), _REMOTE_WINDOW if storage.is_remote(location) else _WINDOW, size)
    rows: dict[str, _Row] = {}
    faults: list[tuple[str, str]] = []
    try:
        for member in members(read, size):
            _place(rows, member, size)
        if not rows:
            raise DataError("holds neither pictures nor captions", kind="empty")
    except DataError as error:
        if error.shard:
            raise
        faults.append((error.kind, str(error)))
    accepted = []
    for stem, row in rows.items():
        fault = _fault(stem, row)
        if fault is not None:
            faults.append(fault)
        elif row.image is not None and (caption := row.txt or row.json) is not None:
            accepted.append(pack(row.image, caption, caption is row.json))
    left_out: dict[str, tuple[int, str]] = {}
    for kind, message in faults:
        count, first = left_out.get(kind, (0, f"shard {name}: {message}; {REMEDIES[kind]}"))
        left_out[kind] = (count + 1, first)
    return Scan(np.array(accepted, np.uint32).reshape(-1, 4), left_out)


REMEDIES = {
    "truncated": "fetch the shard again",
    "header": "fetch the shard again",
    "trailing": "unpack and write one tar file (joined ones are read up to the first end)",
    "not_tar": "give an uncompressed tar file",
    "empty": "remove the shard",
    "name": "write the shard again with plain relative names",
    "link": "write the shard again with the files themselves (tar --dereference)",
    "special": "write the shard again with plain files",
    "size": "write the shard again with smaller members",
    "duplicate": "write the shard again with one picture and one caption for each stem",
    "empty_image": "remove the row",
    "empty_caption": "remove the row",
    "no_image": "add the picture or remove the row",
    "no_caption": "add the caption or remove the row",
}  # a kind of fault -> what to do about it, unless it may be left out with --on_error=skip


def split(name: str) -> tuple[str, str]:
    """(stem, extension in lower case) of a member. The stem is the path up to the first dot of the base name, as in webdataset."""
    folder, slash, base = re.sub(r"^(?:\./+)+", "", name).rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _place(rows: dict[str, _Row], member: Member, size: int) -> None:
    """Give a member to the row of its stem; what is neither picture nor caption counts only if something is wrong with it."""
    if member.type == "directory":
        return
    stem, extension = split(member.name)
    fault = None
    if _HOSTILE.search(member.name):
        fault = ("name", f"member {shown(member.name)} is absolute, leads out of the folder or is no printable UTF-8")
    elif member.type != "file":
        fault = (member.type, f"member {shown(member.name)} is a link, device, pipe or sparse file")
    elif member.data + member.size > size:
        fault = ("truncated", f"member {shown(member.name)} of {member.size:,} bytes at byte {member.data:,} runs past the end, {size:,}")
    known = extension in (*PICTURES, *CAPTIONS) and stem[-1:] not in ("", "/")
    if not known and fault is None:
        return
    row = rows.setdefault(stem if known else member.name, _Row())
    slot = extension if extension in CAPTIONS else "image"
    if known and fault is None and getattr(row, slot) is not None:
        fault = ("duplicate", f"member {shown(member.name)} is the second {slot} of its stem")
    row.fault = row.fault or fault
    if fault is None:
        setattr(row, slot, member)


def _fault(stem: str, row: _Row) -> tuple[str, str] | None:
    """(kind, message) of what is wrong with a row."""
    image, caption = row.image, row.txt or row.json
    if row.fault is not None:
        return row.fault
    if image is None:
        return "no_image", f"{shown(stem)} has no picture ({', '.join(PICTURES)})"
    if caption is None:
        return "no_caption", f"{shown(stem)} has no caption ({', '.join(CAPTIONS)})"
    if image.size == 0:
        return "empty_image", f"member {shown(image.name)} has zero bytes"
    if caption.size == 0:
        return "empty_caption", f"member {shown(caption.name)} has zero bytes"
    if image.size > LARGEST_PICTURE or caption.size > LARGEST_CAPTION or max(image.data, caption.data) >= LARGEST_SHARD:
        found = f"{image.size:,} bytes of picture and {caption.size:,} of caption at bytes {image.data:,} and {caption.data:,}"
        return "size", f"{shown(stem)} has {found}; the limits are {LARGEST_PICTURE:,}, {LARGEST_CAPTION:,} and {LARGEST_SHARD:,}"
    return None
