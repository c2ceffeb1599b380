"""A workdir belongs to one config, and one process at a time trains in it.

JAX is not imported before a config is claimed: a workdir that is refused is refused at once.
"""

import contextlib
import fcntl
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bacl_jax.config import Config, check_resumable, from_config_dict, to_dict
from bacl_jax.settings import ConfigError


@contextlib.contextmanager
def lock_workdir(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Makes the folder of a run or a sweep and keeps other processes out: a lock on DIR/lock that ends with the process, however it ends.

    ConfigError where another process has it, or where the folder cannot be written. Of the processes of one run the first locks for all.
    """
    path = Path(workdir) / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise _not_writable(workdir, error) from None
    with file:
        try:
            _lock(file, workdir)
        except OSError as error:
            warnings.warn(f"{path} cannot be locked ({error.strerror}): do not start a second run in this workdir", stacklevel=3)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def check_free(workdir: str | os.PathLike[str]) -> None:
    """ConfigError where `lock_workdir` would be refused now. Leaves no trace: the file that it tries to write has no name."""
    path = Path(workdir) / "lock"
    there = next(parent for parent in path.parents if os.path.lexists(parent))
    try:
        tempfile.TemporaryFile(dir=there).close()
        file = path.open("r+") if path.exists() else contextlib.nullcontext()
    except OSError as error:
        raise _not_writable(workdir, error) from None
    with file as lock, contextlib.suppress(OSError):  # a file system without locks
        if lock is not None:
            _lock(lock, workdir)


def _lock(file: IO[str], workdir: str | os.PathLike[str]) -> None:
    """ConfigError where another process has the lock; OSError where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        pid = file.read().strip() or "unknown"
        raise ConfigError(
            f"--workdir={workdir} is in use by another process (pid {pid}): wait for it or end it, or take another --workdir"
        ) from None


def _not_writable(workdir: str | os.PathLike[str], error: OSError) -> ConfigError:
    return ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}; take another --workdir")


def check_workdir(workdir: str | os.PathLike[str], config: Config) -> None:
    """ConfigError if the workdir belongs to a config that differs in more than changeable fields."""
    if (Path(workdir) / "config.json").exists():
        check_resumable(read_config(workdir), config)


def claim_workdir(workdir: str | os.PathLike[str], config: Config) -> None:
    """Writes DIR/config.json, after `check_workdir`. Comes after the data are read: a run that never started claims nothing."""
    check_workdir(workdir, config)
    import jax

    path = Path(workdir) / "config.json"
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".json.tmp")
        unfinished.write_text(json.dumps(to_dict(config), indent=2) + "\n")
        unfinished.replace(path)


def saved_steps(workdir: str | os.PathLike[str]) -> list[int]:
    """Steps of the finished checkpoints of a run, ascending."""
    folder = Path(workdir) / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def read_config(workdir: str | os.PathLike[str]) -> Config:
    """The config that DIR/config.json holds. ConfigError if there is none or it is damaged."""
    path = Path(workdir) / "config.json"
    try:
        return from_config_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ConfigError(f"--workdir={workdir} is no workdir of a run: {path} does not exist") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is damaged ({error}); take another --workdir") from None
