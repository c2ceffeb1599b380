"""Names of files: braces, patterns, folders and fsspec URLs become a list."""

import itertools
import re
from collections.abc import Iterator

import fsspec

from bacl_jax.data.source import DataError

LIMIT = 10_000_000  # names that one path may stand for; a typing error in a range is found before it fills the memory
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(path: str, suffix: str = "") -> list[str]:
    """The files that `path` stands for, sorted, each once: local paths as they are, others as fsspec URLs.

    `path` is a file, a folder (its files with names that end in `suffix`, at any depth; a name or folder that begins with "." or "_" is
    passed over), a pattern (*, ?, [...]; the last two not in http URLs) or braces ({0000..0127}, {train,extra}) of any of these.

    Cost: a file name out of braces that ends in `suffix` is not looked up, so that 40,000 remote names take no request; anything else
    takes one or more. Raises DataError of kind "missing" where nothing matches or the place cannot be read, "syntax" for wrong braces.
    """
    names = list(itertools.islice(_braces(path, path), LIMIT + 1))
    if len(names) > LIMIT:
        raise DataError(f"{path}: the braces stand for more than {LIMIT:,} names; check the ranges", kind="syntax", shard=path)
    several = len(names) > 1 or names[0] != path
    found = set()
    for name in names:
        known = several and suffix and name.endswith(suffix) and not _is_pattern(name)
        found |= {name} if known else _look_up(name, suffix)
    if not found:
        raise DataError(f"{path}: no file{f' that ends in {suffix}' * bool(suffix)} there; correct the path", kind="missing", shard=path)
    return sorted(found)


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """(the file system of a path or URL, the name there). DataError of kind "missing" for a scheme that cannot be read."""
    try:
        return fsspec.url_to_fs(path)
    except (ValueError, ImportError, OSError) as error:
        raise DataError(f"{path}: {error}", kind="missing", shard=path) from error


def is_local(path: str) -> bool:
    """Whether the path names a file of this machine: it has no scheme, or file://."""
    return "local" in filesystem(path)[0].protocol


def _is_pattern(name: str) -> bool:
    return "*" in name or (not name.startswith("http") and any(sign in name for sign in "?["))


def _look_up(name: str, suffix: str) -> set[str]:
    system, inside = filesystem(name)

    def url(entry: str) -> str:
        return entry if "local" in system.protocol else str(system.unstrip_protocol(entry))

    try:
        files: set[str] = set()
        for entry in map(str, system.glob(inside)) if _is_pattern(name) else [inside]:
            if system.info(entry)["type"] == "directory":
                files |= {url(each) for each in system.find(entry) if each.endswith(suffix) and not _hidden(each.removeprefix(entry))}
            else:
                files.add(name if entry == inside else url(entry))
    except (OSError, ValueError) as error:
        reason = "no such file or folder" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DataError(f"{name}: {reason}; correct the path", kind="missing", shard=name) from error
    return files


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def _braces(text: str, path: str) -> Iterator[str]:
    """The texts that braces stand for, the innermost taken first; {08..11} keeps its zeros."""
    match = _BRACES.search(text)
    if match is None:
        if "{" in text or "}" in text:
            raise DataError(f"{path}: a brace that is not closed or not opened", kind="syntax", shard=path)
        yield text
        return
    limits = _RANGE.fullmatch(match[1])
    if limits is None and "," not in match[1]:
        raise DataError(f"{path}: {match[0]} is neither {{first..last}} nor {{one,other}}", kind="syntax", shard=path)
    if limits is not None:
        first, last = limits.groups()
        if int(first) > int(last):
            raise DataError(f"{path}: {match[0]} counts down; write {{{last}..{first}}}", kind="syntax", shard=path)
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        choices: Iterator[str] = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    else:
        choices = iter(match[1].split(","))
    for choice in choices:
        yield from _braces(text[: match.start()] + choice + text[match.end() :], path)
