"""Parts of files by location, here or far away, read by any number of threads and processes.

A location is a local path, an http(s) URL whose server answers range requests, or any URL that fsspec has a client for (memory://, s3://).
"""

import functools
import io
import os
import random
import re
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from typing import Any, TypeVar

import fsspec

from bacl_jax.data.cache import Cache
from bacl_jax.errors import DataError

TRIES = 6  # of a remote request
BACKOFF = 0.5  # seconds before the second try, give or take a half by chance; twice as long before each further one
LONGEST_WAIT = 60  # seconds that a server may ask for in Retry-After
TIMEOUT = 30  # seconds without a byte from an HTTP server
SLOWEST = 16 * 1024  # bytes a second that an HTTP server has to send when TIMEOUT is over
_PIECE = 2**16  # bytes of a body between two looks at the clock
_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # answers after which the same request may succeed
_ABSENT = {401, 403, 404, 410}
_SPAN = re.compile(r"bytes (\d+)-\d+/(\d+)")
PAGE_BYTES = 4 * 2**20  # of a remote file that is kept
_OPEN_FILES = 64  # local files that a Reader keeps open
_THREADS = 32  # that ask for sizes
_jitter = random.Random()
T = TypeVar("T")


class _Refused(OSError):
    """An answer that will be the same at the next try."""


def is_remote(location: str) -> bool:
    return "://" in location


def client(location: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """(the file system of a URL, the name there), kept by fsspec for each process and thread. DataError of kind "path" without a client."""
    try:
        return fsspec.url_to_fs(location)
    except (ValueError, ImportError) as error:
        raise DataError(f"{location}: {error}; correct the path or install that package", kind="path", shard=location) from error


class _Descriptor:
    """An open file, closed when the last thread that uses it lets it go; read by position, so forked processes can share it."""

    def __init__(self, location: str):
        self.number = os.open(location, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number).atexit = False


class Reader:
    """Reads parts of files. Keeps the local files read last open, so one that is deleted or exchanged is read on as it was for a while;
    thread safe, and safe in a forked process.

    keep_bytes: of remote files that are kept in memory, in pages of 4 MiB that are requested whole: for parts that lie near each other and
                are read at about the same time. 0: each part is a request, and none is kept.
    """

    def __init__(self, keep_bytes: int = 0) -> None:
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(_Descriptor)
        self._pages: Cache[bytes] | None = Cache(keep_bytes) if keep_bytes else None

    def read(self, location: str, start: int, end: int) -> bytes:
        """Bytes start ... end - 1; fewer, down to none, where the file ends before.

        Raises DataError of kind "missing" (no such file, or it may not be read) or "remote" (`attempt`).
        """
        if end <= start:
            return b""
        if is_remote(location):
            if self._pages is None:
                return _fetched(location, start, end)
            pages = [self._page(self._pages, location, number) for number in range(start // PAGE_BYTES, (end - 1) // PAGE_BYTES + 1)]
            first = start // PAGE_BYTES * PAGE_BYTES
            return b"".join(pages)[start - first : end - first]
        try:
            file, parts, position = self._open(location), [], start
            while position < end and (part := os.pread(file.number, end - position, position)):
                parts.append(part)
                position += len(part)
            return b"".join(parts)
        except OSError as error:
            raise _missing(location, error) from error

    def _page(self, pages: Cache[bytes], location: str, number: int) -> bytes:
        def make() -> tuple[bytes, int]:
            content = _fetched(location, number * PAGE_BYTES, (number + 1) * PAGE_BYTES)
            return content, len(content)

        return pages.get((location, number), make)


class RemoteFile(io.RawIOBase):
    """A remote file for libraries that read Python files; without a buffer: each read is a request. Raises what `Reader.read` does."""

    def __init__(self, location: str):
        self._location, self._end, self._position = location, size(location), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = self._end if size is None or size < 0 else min(self._position + size, self._end)
        content = _fetched(self._location, self._position, end) if end > self._position else b""
        self._position += len(content)
        return content


def _fetched(location: str, start: int, end: int) -> bytes:
    return attempt("read", location, lambda: _fetch(location, start, end)[0])


def size(location: str) -> int:
    """Bytes of a file. Raises DataError as `Reader.read` does."""
    if is_remote(location):
        return attempt("measure", location, lambda: _remote_size(location))
    try:
        return os.stat(location).st_size
    except OSError as error:
        raise _missing(location, error) from error


def stamp(location: str) -> int:
    """Nanoseconds since 1970 at which a local file was last written; 0 for a remote one. Raises DataError of kind "missing"."""
    if is_remote(location):
        return 0
    try:
        return os.stat(location).st_mtime_ns
    except OSError as error:
        raise _missing(location, error) from error


def sizes(locations: Sequence[str]) -> list[int | DataError]:
    """The size of each, or the error that came instead; remote ones are asked for by 32 threads."""
    if not any(map(is_remote, locations)):
        return [_size_or_error(location) for location in locations]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(_size_or_error, locations))


def _size_or_error(location: str) -> int | DataError:
    try:
        return size(location)
    except DataError as error:
        return error


def _missing(location: str, error: OSError) -> DataError:
    return DataError(f"{location}: cannot be read ({error.strerror or error}); restore it", kind="missing", shard=location)


def attempt(verb: str, location: str, request: Callable[[], T]) -> T:
    """What `request` gives, at the first of TRIES that works; between them it waits, longer each time, at least as long as the server asks.

    Raises DataError of kind "missing" for a file that is not there or may not be read, at once, and "remote" when the last try failed or
    the server answers what it will answer again.
    """
    for tried in range(1, TRIES + 1):
        try:
            return request()
        except DataError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(f"{location}: not found, or not to be read; correct the path", kind="missing", shard=location) from error
        except Exception as error:  # a client of fsspec raises whatever the library beneath it does
            if tried == TRIES or isinstance(error, _Refused):
                found = f"cannot {verb} it, {tried} tries failed ({type(error).__name__.lstrip('_')}: {error})"
                raise DataError(f"{location}: {found}; check the network and the server", kind="remote", shard=location) from error
            wait = BACKOFF * 2 ** (tried - 1) * _jitter.uniform(0.5, 1.5)  # many readers that failed together do not come back together
            time.sleep(max(wait, min(_asked_to_wait(error), LONGEST_WAIT)))
    raise AssertionError("TRIES is at least 1")


def _asked_to_wait(error: Exception) -> float:
    """Seconds of the header Retry-After."""
    text = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    return int(text) if re.fullmatch(r"\d{1,6}", text) else 0


def _remote_size(location: str) -> int:
    if location.startswith(("http://", "https://")):
        return _fetch(location, 0, 1)[1]
    system, path = client(location)
    found = system.size(path)
    if found is None:
        raise OSError("the server tells no size")
    return int(found)


def _fetch(location: str, start: int, end: int) -> tuple[bytes, int]:
    """(the bytes, size of the file); the size is -1 where the client does not tell it."""
    if not location.startswith(("http://", "https://")):
        system, path = client(location)
        content: Any = system.cat_file(path, start=start, end=end)
        return bytes(content), -1
    request = urllib.request.Request(location, headers={"Range": f"bytes={start}-{end - 1}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            total = _SPAN.fullmatch(response.headers.get("Content-Range") or "")
            if response.status != 206 or total is None or int(total[1]) != start:
                raise _Refused(f"the server does not answer range requests (status {response.status})")
            content = _body(response, end - start)
    except urllib.error.HTTPError as error:
        with error:
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
            if error.code == 416 and total:
                return b"", int(total[1])
            if error.code in _ABSENT:
                raise FileNotFoundError(location) from error
            if error.code not in _AGAIN:
                raise _Refused(f"status {error.code} {error.reason}") from error
            raise
    if len(content) != min(end, int(total[2])) - start:
        raise OSError(f"the server sent {len(content)} bytes of {end - start}")
    return content, int(total[2])


def _body(response: HTTPResponse, most: int) -> bytes:
    """What the server sends, up to `most` bytes and one. Raises TimeoutError where it comes so slowly that it would not end."""
    parts, length, started = [], 0, time.monotonic()
    while length <= most and (part := response.read1(min(_PIECE, most + 1 - length))):
        parts.append(part)
        length += len(part)
        seconds = time.monotonic() - started
        if seconds > TIMEOUT + length / SLOWEST:
            raise TimeoutError(f"{length} bytes in {seconds:.0f} seconds")
    return b"".join(parts)
