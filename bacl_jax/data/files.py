"""Names of files: braces, patterns, folders and URLs become a list of locations (bacl_jax/data/storage.py reads them)."""

import glob
import importlib.util
import itertools
import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bacl_jax.data import storage
from bacl_jax.errors import DataError

PACKAGE = "package:"  # begins a path in an installed Python package: package:name/folder/file
LIMIT = 1_000_000  # names that one path may stand for; a typing error in a range is found before it fills the memory
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_GLOB = re.compile(r"[*?\[]")


def expand(path: str, suffix: str) -> list[str]:
    """The locations that `path` stands for, in its order; what a folder or a pattern stands for is sorted.

    `path` is a file, a folder (its files with names that end in `suffix`, at any depth; a name or folder that begins with "." or "_" is
    passed over), a pattern (*, ?, [...], ** for any depth) or braces ({0000..0127}, zeros kept, {train,extra}, one inside the other) of any
    of these. An http(s) server lists nothing, so there a path is a file, or braces.

    Cost: names out of braces that end in `suffix` are not looked up far away, so that 40,000 of them take no request. A file may thus be
    none: that shows when it is read. Raises DataError of kind "path" for braces that cannot be expanded, more than LIMIT names, a name
    that is there twice, or a scheme without a client; "missing" where nothing matches; "remote" where a listing fails (`storage.attempt`).
    """
    names = list(itertools.islice(_braces(path, path), LIMIT + 1))
    if len(names) > LIMIT:
        raise DataError(f"{path}: the braces stand for more than {LIMIT:,} names; check the ranges", kind="path", shard=path)
    found = [location for name in names for location in _look_up(name, suffix, several=len(names) > 1)]
    if len(set(found)) < len(found):
        raise DataError(f"{path}: names {len(found) - len(set(found))} files twice; name each once", kind="path", shard=path)
    return found


def located(path: str) -> Path:
    """A local path: itself, or the file or folder in an installed Python package that package:name/folder/file means.

    The package is not imported. DataError of kind "missing" where none of that name is installed.
    """
    if not path.startswith(PACKAGE):
        return Path(path)
    package, _, inside = path.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise DataError(f"{path}: no Python package {package!r} is installed; install it, or name a folder", kind="missing")
    return Path(found.submodule_search_locations[0]) / inside


def common_folder(locations: Sequence[str]) -> str:
    """The folder that all files lie in or below, with a slash at its end; empty for the working folder."""
    parts = zip(*(location.split("/")[:-1] for location in locations), strict=False)
    return "".join(part[0] + "/" for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts))


def below_common_folder(locations: Sequence[str]) -> list[str]:
    """The names without the folders that all of them share: the same wherever those lie."""
    common = common_folder(locations)
    return [location[len(common) :] for location in locations]


def _look_up(name: str, suffix: str, *, several: bool) -> list[str]:
    name = name.removeprefix("file://")
    if name.startswith(("http://", "https://")):
        inside = urllib.parse.urlsplit(name).path  # a ? begins a query, which may hold anything
        if "*" in inside or inside.endswith("/"):
            raise DataError(f"{name}: http servers list no files; name them, with braces for many", kind="path", shard=name)
        return [name]
    if storage.is_remote(name):
        found = [name] if several and name.endswith(suffix) and not _GLOB.search(name) else _remote_files(name, suffix)
    else:
        found = _local_files(name, suffix)
    if not found:
        found_there = f"no file that ends in {suffix} there" if _GLOB.search(name) or os.path.isdir(name) else "no such file or folder"
        raise DataError(f"{name}: {found_there}; correct the path", kind="missing", shard=name)
    return found


def _local_files(name: str, suffix: str) -> list[str]:
    if os.path.isdir(name):
        return _in_folder(name, suffix)
    if os.path.exists(name) or (name.endswith(suffix) and not _GLOB.search(name)):
        return [name]
    entries = sorted(glob.glob(name, recursive=True))
    return [file for entry in entries for file in (_in_folder(entry, suffix) if os.path.isdir(entry) else [entry])]


def _in_folder(folder: str, suffix: str) -> list[str]:
    inside = (os.path.relpath(os.path.join(place, file), folder) for place, _, files in os.walk(folder) for file in files)
    return sorted(os.path.join(folder, file) for file in inside if file.endswith(suffix) and not _hidden(file))


def _remote_files(name: str, suffix: str) -> list[str]:
    system, inside = storage.client(name)
    pattern = _GLOB.search(inside) is not None

    def listed() -> list[str]:
        files: list[str] = []
        for entry in sorted(map(str, system.glob(inside))) if pattern else [inside]:
            if system.isdir(entry):
                within = map(str, system.find(entry))
                files += sorted(each for each in within if each.endswith(suffix) and not _hidden(each.removeprefix(entry)))
            else:
                files.append(entry)
        return [name if entry == inside else str(system.unstrip_protocol(entry)) for entry in files]

    return storage.attempt("list", name, listed)


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def _braces(text: str, path: str) -> Iterator[str]:
    """The texts that braces stand for, in the order of a shell; {08..11} keeps its zeros, {2..0} counts down."""
    before, brace, rest = text.partition("{")
    unpaired = "}" in before
    depth, cuts = 1, [-1]  # of the outermost pair: where its choices end
    for position, sign in enumerate(rest):
        depth += (sign == "{") - (sign == "}")
        if depth == 0 or (depth == 1 and sign == ","):
            cuts.append(position)
        if depth == 0:
            break
    if unpaired or (brace and depth > 0):
        raise DataError(f"{path}: a brace that is not closed or not opened", kind="path", shard=path)
    if not brace:
        yield text
        return
    parts = [rest[first + 1 : last] for first, last in itertools.pairwise(cuts)]
    for choice in itertools.chain.from_iterable(_braces(part, path) for part in parts) if len(parts) > 1 else _numbers(parts[0], path):
        for end in _braces(rest[cuts[-1] + 1 :], path):
            yield before + choice + end


def _numbers(inside: str, path: str) -> Iterator[str]:
    limits = _RANGE.fullmatch(inside)
    if limits is None:
        raise DataError(f"{path}: {{{inside}}} is neither {{first..last}} nor {{one,other}}", kind="path", shard=path)
    first, last = map(int, limits.groups())
    step = 1 if first <= last else -1
    width = max(map(len, limits.groups())) if any(len(text) > 1 and text[0] == "0" for text in limits.groups()) else 0
    return (f"{number:0{width}d}" for number in range(first, last + step, step))
