"""Damage for the inputs of readers, and what every reader owes to a damaged input."""

import contextlib
import faulthandler
import random
import re
import time
from pathlib import Path

from bacl_jax.errors import DataError

SECONDS = 10  # that one damaged input may take, from opening to its last row
DOCUMENT = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
KINDS = {kind for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", DOCUMENT, re.M) for kind in re.findall(r"\w+", row)}
KINDS |= set(re.findall(r"kind `(\w+)`", DOCUMENT))


def damaged(content: bytes, seed: int, first: int = 0) -> bytes:
    """The content with bits flipped, cut off, cut out, overwritten, zeroed, doubled or prolonged, from byte `first` on; never as it was."""
    draw = random.Random(seed)
    found = bytearray(content)
    while bytes(found) == content:
        start = draw.randrange(first, len(found))
        length = draw.choice([1, 20, 512, len(found) // 4])
        match seed % 8:
            case 0 | 1 | 2:
                for _ in range(draw.choice([1, 1, 2, 3, 30])):
                    found[draw.randrange(first, len(found))] ^= 1 << draw.randrange(8)
            case 3:
                del found[start:]
            case 4:
                del found[start : start + length]
            case 5:
                found[start : start + length] = draw.randbytes(length)
            case 6:
                found[start : start + length] = bytes(length)
            case 7:
                found[start:start] = draw.choice([found[start : start + length], draw.randbytes(length)])
    return bytes(found)


@contextlib.contextmanager
def in_time():
    """One input: no crash, no hang. A hang that Python cannot end ends the process, with the place where it was."""
    before = time.monotonic()
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert time.monotonic() - before < SECONDS


def kind_of(error: DataError) -> str:
    """The kind of an error that is as documented: one of the kinds of docs/data.md, a message of one line."""
    assert error.kind in KINDS, error.kind
    assert str(error).isprintable(), ascii(error)
    return error.kind
