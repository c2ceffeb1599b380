"""SHA256SUMS of a checkpoint: written before the checkpoint appears, and looked at before it is read."""

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path

import jax

SUMS = "SHA256SUMS"


def write_sums_of_unfinished(directory: Path) -> Callable[[], None]:
    """A function that orbax calls when all items are written and the folder still has its temporary name."""

    def write() -> None:
        if jax.process_index() == 0:
            for folder in directory.glob("*.orbax-checkpoint-tmp*"):
                (folder / SUMS).write_text("".join(f"{_digest(path)}  {path.relative_to(folder)}\n" for path in _items_files(folder)))

    return write


def listed(folder: Path) -> list[tuple[str, str]]:
    """(digest, path in the folder) of each file of a checkpoint. FileNotFoundError where it has no such list."""
    lines = (folder / SUMS).read_text(errors="replace").splitlines()
    return [(digest, name) for digest, _, name in (line.partition("  ") for line in lines)]


def items_of(folder: Path) -> set[str]:
    """Names of the items that a checkpoint was written with, whether or not they are still there; none where it has no list."""
    try:
        return {name.partition("/")[0] for _, name in listed(folder)}
    except FileNotFoundError:
        return set()


def problem_of(folder: Path, items: Collection[str] | None = None) -> str | None:
    """What is wrong with a checkpoint, or with these items of it; None when every file is as it was written."""
    if not folder.is_dir():
        return "it is not there any more"
    try:
        files = listed(folder)
    except FileNotFoundError:
        return f"half-written, it has no {SUMS}"
    if not files:
        return f"{SUMS} is empty"
    if lacking := set(items or ()) - {name.partition("/")[0] for _, name in files}:
        return f"it was written without {', '.join(sorted(lacking))}"
    for digest, name in files:
        path = folder / name
        if items is not None and name.partition("/")[0] not in items:
            continue
        try:
            if _digest(path) != digest:
                return f"{name} has changed since it was written ({path.stat().st_size} bytes)"
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return f"{name} is missing"
    return None


def _items_files(folder: Path) -> list[Path]:
    """Files inside the item folders; orbax rewrites those at the top (its time stamps) after the sums are made."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
