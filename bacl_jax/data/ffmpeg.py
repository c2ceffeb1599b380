"""Opening files with FFmpeg (PyAV): films, and their sound."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bacl_jax.data.optional import library
from bacl_jax.errors import DataError

_LISTS = {"concat", "hls", "dash", "imf"}  # text that names other files


@contextlib.contextmanager
def opened(source: Path | bytes, what: str) -> Iterator[Any]:
    """The container of a file. DataError of kind "unreadable", naming `what` it is not, where opening or what is done inside fails."""
    av = library("av", what)
    try:
        # an absolute path: of "12:30.mp4" FFmpeg takes what is before the colon for a protocol
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else os.path.abspath(source)) as container:
            if _LISTS & {*container.format.name.split(",")}:
                raise DataError(f"not a readable {what} (a list of files)", kind="unreadable")
            yield container
    except DataError:  # which is a ValueError
        raise
    except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"not a readable {what} ({str(error).splitlines()[0]})", kind="unreadable") from error
