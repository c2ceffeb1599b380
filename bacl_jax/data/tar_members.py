"""The members of a tar file, from its headers alone: ustar, pax and GNU long names.

The walk is written out here since the standard library's tarfile keeps every member, takes several times as long, ends without a word at a
damaged header, and (in many Pythons in use) never ends on a negative size.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator

from bacl_jax.errors import DataError

BLOCK = 512
MOST_HEADERS = 127  # blocks of headers before the content of a member
_TAIL = 2**20  # bytes after the end mark that are looked at
_ZERO = bytes(BLOCK)
Read = Callable[[int, int], bytes]  # bytes start ... end - 1, fewer where the file ends before


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One member: `head` is where its first header starts (extensions included), `data` where its content does; `next` the following
    member. `type` is "file", "directory", "link" or "special" (device, pipe, sparse file, unknown)."""

    name: str
    type: str
    head: int
    data: int
    size: int
    next: int


def windowed(read: Read, window: int, size: int) -> Read:
    """`read` for increasing offsets through a buffer: at least `window` bytes are fetched at once."""
    start, buffer = 0, b""

    def buffered(first: int, last: int) -> bytes:
        nonlocal start, buffer
        if not start <= first <= last <= start + len(buffer):
            start, buffer = first, read(first, min(max(last, first + window), size))
        return buffer[first - start : last - start]

    return buffered


def members(read: Read, size: int) -> Iterator[Member]:
    """The members of a tar file of `size` bytes in their order; the last one may run past the end.

    Raises DataError (without a shard) where the walk cannot go on: not_tar, header, truncated, trailing, size, empty.
    """
    position = 0
    while position <= size:
        member = next_member(read, position, size)
        if member is None:
            return _check_tail(read, position, size)
        yield member
        if member.data + member.size > size:
            return None
        position = member.next
    raise DataError("ends inside the padding of its last member", kind="truncated")


def _check_tail(read: Read, position: int, size: int) -> None:
    tail = read(position, min(size, position + _TAIL))
    if size - position > _TAIL or tail.count(0) < len(tail):
        raise DataError(f"{size - position:,} bytes after its end mark", kind="trailing")


def next_member(read: Read, position: int, size: int) -> Member | None:
    """The member whose headers start at `position`, or None at the end mark. Raises DataError as `members` does."""
    head, name, extended = position, None, {}
    while True:
        header = read(position, position + BLOCK)
        if len(header) < BLOCK:
            if size == 0:
                raise DataError("zero bytes", kind="empty")
            found = f"{size:,} bytes, no end mark" if position == size else f"ends inside the header at byte {position:,}"
            raise DataError(found, kind="truncated" if position else "not_tar")
        if header == _ZERO:
            if position > head:
                raise DataError(f"no member follows the extended header at byte {head:,}", kind="header")
            return None
        length, kind = _checked(header, position), header[156:157]
        data = position + BLOCK
        if data - head > MOST_HEADERS * BLOCK:
            raise DataError(f"more than {MOST_HEADERS} blocks of headers at byte {head:,}", kind="header")
        if kind not in b"LKxgX":
            break
        if length > MOST_HEADERS * BLOCK:
            raise DataError(f"an extended header of {length:,} bytes at byte {position:,}", kind="header")
        content = read(data, data + length)
        if len(content) < length:
            raise DataError(f"ends inside the extended header at byte {position:,}", kind="truncated")
        if kind == b"L":
            name = content.split(b"\0", 1)[0]
        elif kind in b"xX":
            extended = _pax(content, position)
        position = data + _padded(length)
    if kind == b"S":  # an old GNU sparse file: further blocks of its map may follow
        more = header[482]
        while more:
            block = read(data, data + BLOCK)
            more, data = block[504] if len(block) == BLOCK else 0, data + BLOCK
    path = (extended.get(b"path") or name or _ustar_name(header)).decode("utf-8", "surrogateescape")
    if b"size" in extended:
        length = _decimal(extended[b"size"], position)
    return _described(path, kind, head, data, length, any(key.startswith(b"GNU.sparse") for key in extended))


def _described(path: str, kind: bytes, head: int, data: int, length: int, sparse: bool) -> Member:
    if kind == b"5" or (kind == b"\0" and path.endswith("/")):
        return Member(path, "directory", head, data, 0, data)
    if kind in (b"1", b"2"):
        return Member(path, "link", head, data, 0, data)
    if kind in (b"3", b"4", b"6"):
        return Member(path, "special", head, data, 0, data)
    plain = kind in (b"0", b"\0", b"7") and not sparse
    return Member(path, "file" if plain else "special", head, data, length, data + _padded(length))


def _checked(header: bytes, position: int) -> int:
    """The size field of a header whose checksum is right."""
    try:
        stated, length = _number(header[148:156]), _number(header[124:136])
    except ValueError:
        stated, length = -1, 0
    if stated != 256 + sum(header) - sum(header[148:156]):
        raise DataError(f"no tar header at byte {position:,}", kind="header" if position else "not_tar")
    if length < 0:
        raise DataError(f"a size of {length:,} bytes in the header at byte {position:,}", kind="size")
    return length


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256 for large and negative numbers."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        return value - (1 << 8 * len(field)) if field[0] == 0xFF else value - (0x80 << 8 * (len(field) - 1))
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _ustar_name(header: bytes) -> bytes:
    name, prefix = (part.split(b"\0", 1)[0] for part in (header[:100], header[345:500]))
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _pax(content: bytes, position: int) -> dict[bytes, bytes]:
    """The records "<length> <key>=<value>\\n" of a pax header."""
    found, start = {}, 0
    while start < len(content) and content[start]:
        digits, _, _ = content[start : start + 20].partition(b" ")
        length = _decimal(digits, position)
        record = content[start : start + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) < length or not equals or record[-1:] != b"\n":
            raise DataError(f"a damaged pax record at byte {position:,}", kind="header")
        found[key] = value
        start += length
    return found


def _decimal(digits: bytes, position: int) -> int:
    if not re.fullmatch(rb"[0-9]{1,18}", digits):
        raise DataError(f"{digits[:20]!r} where a number belongs, in the pax header before byte {position:,}", kind="header")
    return int(digits)


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def shown(name: str) -> str:
    """A member's name in a message: escaped, and cut where it is long."""
    return repr(name if len(name) <= 200 else name[:200] + "...")
