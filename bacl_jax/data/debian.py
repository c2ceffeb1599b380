"""Debian's data packages as data sets: found where they are unpacked, or fetched with apt and unpacked without being installed.

Nothing of them is part of this project; each package tells its licences in usr/share/doc/<package>/copyright.
"""

import os
import shutil
import subprocess
from pathlib import Path

from bacl_jax.settings import ConfigError

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bacl_jax"


def folder(package: str, inside: str, path: str | None) -> Path:
    """The folder `inside` of an unpacked package: at `path` (the folder itself, or where the package was unpacked), as the system has it
    installed, or where `fetch` put it. ConfigError, with the ways to get it, where it is nowhere."""
    roots = [Path(path)] if path else [CACHE / package, Path("/")]
    for found in (root / inside for root in roots):
        if found.is_dir():
            return found
    if path and Path(path).is_dir():
        return Path(path)
    raise ConfigError(
        f"config.data.path = {path!r}: {inside} of the Debian package {package} is not there; fetch it with "
        f"python -m launch.fetch --package={package}, or unpack it (dpkg-deb -x FILE.deb DIR) and set --config.data.path=DIR"
    )


def fetch(package: str) -> Path:
    """Downloads and unpacks a package into the cache, unless it is there; returns its root. ConfigError where apt cannot do it."""
    target = CACHE / package
    if target.is_dir():
        return target
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} not found: on a machine without Debian's tools, unpack {package} elsewhere "
            "(dpkg-deb -x FILE.deb DIR, or ar x FILE.deb and tar xf data.tar.*) and set --config.data.path=DIR"
        )
    unfinished = CACHE / f".{package}.{os.getpid()}"
    unfinished.mkdir(parents=True)
    try:
        lists = [f"-oDir::State::lists={unfinished / 'lists'}", f"-oDir::Cache={unfinished / 'cache'}", "-oAPT::Sandbox::User="]
        # where the system's lists of packages are missing or older than the archive: lists of our own, which needs no root
        for arguments in (["download", package], [*lists, "update"], [*lists, "download", package]):
            done = subprocess.run(["apt-get", *arguments], cwd=unfinished, capture_output=True, text=True, check=False)
            if files := [*unfinished.glob("*.deb")]:
                break
        else:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ConfigError(f"apt-get download {package} failed ({last}); set --config.data.path to an unpacked copy")
        subprocess.run(["dpkg-deb", "-x", files[0].name, "root"], cwd=unfinished, check=True)
        (unfinished / "root").replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target
