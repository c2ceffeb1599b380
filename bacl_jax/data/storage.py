"""Files by location, here or far away: brace expansion, sizes, and parts of files read by any number of threads and processes.

A location is a local path, an http(s) URL whose server answers range requests, or any URL that fsspec has a client for (memory://, s3://).
"""

import functools
import glob
import itertools
import os
import re
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fsspec.core import url_to_fs

from bacl_jax.data.source import DataError

TRIES = 3  # of a remote request
BACKOFF = 0.5  # seconds before the second try; twice as long before each further one
TIMEOUT = 60  # seconds without a byte from an HTTP server
MOST_LOCATIONS = 1_000_000  # that one path may name
_OPEN_FILES = 64  # local files that a Reader keeps open
_THREADS = 32  # that ask for sizes
_GLOB = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
T = TypeVar("T")


def is_remote(location: str) -> bool:
    return "://" in location


def expand(path: str) -> list[str]:
    """The locations that `path` names, in its order: "s/{00000..00099}.tar" (zeros kept), "s/{a,b}.tar", several braces, "s/*.tar", or a
    folder, which stands for the files *.tar in it. Without a pattern a location is taken as it is, whether or not it exists.

    Raises DataError: "path" for braces that cannot be expanded, too many or repeated locations; "missing" if a folder or pattern is empty.
    """
    parts = _BRACES.split(path)
    if any(brace in part for part in parts[::2] for brace in "{}"):
        raise DataError(f"{path}: nested or unpaired braces; write them out, as in a/{{0..4}}.tar", kind="path")
    choices = [[part] if i % 2 == 0 else _alternatives(path, part) for i, part in enumerate(parts)]
    count = 1
    for each in choices:
        count *= len(each)
    _bounded(path, count)
    found = [location for each in itertools.product(*choices) for location in _matches("".join(each))]
    if len(set(found)) < len(found):
        raise DataError(f"{path}: names {len(found) - len(set(found))} files twice; name each once", kind="path")
    return found


def _alternatives(path: str, inside: str) -> Sequence[str]:
    bounds = _RANGE.fullmatch(inside)
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        _bounded(path, abs(last - first) + 1)
        width = max(map(len, bounds.groups())) if any(len(text) > 1 and text[0] == "0" for text in bounds.groups()) else 0
        return [f"{number:0{width}d}" for number in range(first, last + (1 if last >= first else -1), 1 if last >= first else -1)]
    if "," in inside:
        return inside.split(",")
    raise DataError(f"{path}: {{{inside}}} is neither a range nor a list; write {{00..99}} or {{a,b}}", kind="path")


def _bounded(path: str, count: int) -> None:
    if count > MOST_LOCATIONS:
        raise DataError(f"{path}: {count:,} locations, at most {MOST_LOCATIONS:,} are allowed; correct the braces", kind="path")


def _matches(location: str) -> list[str]:
    if is_remote(location):
        if location.startswith(("http://", "https://")):
            return [location]  # no listing there, and ? begins a query
        system, path = url_to_fs(location)
        if not _GLOB.search(path) and (path.endswith(".tar") or not _remote("list", location, lambda: system.isdir(path))):
            return [location]  # without a request where the name says that it is a shard
        pattern = path if _GLOB.search(path) else path.rstrip("/") + "/*.tar"
        names = _remote("list", location, lambda: system.glob(pattern))
        found = [system.unstrip_protocol(str(name)) for name in sorted(names)]
    elif os.path.isdir(location):
        found = sorted(glob.glob(os.path.join(glob.escape(location), "*.tar")))
    elif _GLOB.search(location) and not os.path.exists(location):
        found = sorted(glob.glob(location, recursive=True))
    else:
        return [location]
    if not found:
        raise DataError(f"{location}: no file there; correct the path", kind="missing")
    return found


class _Descriptor:
    """An open file, closed when the last thread that uses it lets it go; read by position, so forked processes can share it."""

    def __init__(self, location: str):
        self.number = os.open(location, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number).atexit = False


class Reader:
    """Reads parts of files. Keeps the local files read last open; thread safe, and safe in a forked process."""

    def __init__(self) -> None:
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(_Descriptor)

    def read(self, location: str, start: int, end: int) -> bytes:
        """Bytes start ... end - 1; fewer, down to none, where the file ends before.

        Raises DataError of kind "missing" (no such file, or it may not be read) or "remote" (still failing at the last of TRIES).
        """
        if end <= start:
            return b""
        if is_remote(location):
            return _remote("read", location, lambda: _fetch(location, start, end)[0])
        try:
            file, parts, position = self._open(location), [], start
            while position < end and (part := os.pread(file.number, end - position, position)):
                parts.append(part)
                position += len(part)
            return b"".join(parts)
        except OSError as error:
            raise _missing(location, error) from error


def size(location: str) -> int:
    """Bytes of a file. Raises DataError as `Reader.read` does."""
    if is_remote(location):
        return _remote("measure", location, lambda: _remote_size(location))
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


def _remote(verb: str, location: str, request: Callable[[], T]) -> T:
    for attempt in range(TRIES):
        try:
            return request()
        except FileNotFoundError as error:
            raise DataError(f"{location}: not found; correct the path", kind="missing", shard=location) from error
        except Exception as error:  # a client of fsspec raises whatever the library beneath it does
            if attempt == TRIES - 1:
                found = f"cannot {verb} it, {TRIES} tries failed ({type(error).__name__}: {error})"
                raise DataError(f"{location}: {found}; check the network and the server", kind="remote", shard=location) from error
            time.sleep(BACKOFF * 2**attempt)
    raise AssertionError("TRIES is at least 1")


def _remote_size(location: str) -> int:
    if location.startswith(("http://", "https://")):
        return _fetch(location, 0, 1)[1]
    system, path = url_to_fs(location)
    found = system.size(path)
    if found is None:
        raise OSError("the server tells no size")
    return int(found)


def _fetch(location: str, start: int, end: int) -> tuple[bytes, int]:
    """(the bytes, size of the file); the size is -1 where the client does not tell it."""
    if not location.startswith(("http://", "https://")):
        system, path = url_to_fs(location)  # cached by fsspec for each process and thread
        return bytes(system.cat_file(path, start=start, end=end)), -1
    request = urllib.request.Request(location, headers={"Range": f"bytes={start}-{end - 1}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            total = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if response.status != 206 or total is None or int(total[1]) != start:
                raise OSError(f"the server does not answer range requests (status {response.status})")
            content = response.read()
    except urllib.error.HTTPError as error:
        with error:
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if error.code == 416 and total:
                return b"", int(total[1])
            if error.code in (404, 410):
                raise FileNotFoundError(location) from error
            raise
    if len(content) != min(end, int(total[2])) - start:
        raise OSError(f"the server sent {len(content)} bytes of {end - start}")
    return content, int(total[2])
