"""What can be refused before a device is touched: files that are not there, a workdir of another config, a mesh that cannot be."""

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bacl_jax.config import Config, ConfigError, contradictions, unchecked
from bacl_jax.eval.tasks import ALL, check_tasks
from bacl_jax.rules import check_divides, mesh_sizes
from bacl_jax.settings import Problems, how_to_set
from bacl_jax.train.workdir import check_free, check_workdir, read_config, saved_steps

IN_FILES = ("manifest", "webdataset", "parquet", "array_record")  # kinds of data whose path is one of files
PATTERN = re.compile(r"[*?\[{]")  # begins what stands for several names: their folder must be there, and the reader looks for them


def check(settings: Any, workdir: str, devices: int | None) -> Config:
    """The config. Problems, with a line for each, where something is wrong with it, its files or the workdir. Writes nothing."""
    config = unchecked(settings)
    found = [*contradictions(config), *problems(config, workdir, devices), *_refused(functools.partial(check_free, workdir))]
    if found:
        raise Problems(found)
    return config


def check_evaluation(workdir: str, tasks: Sequence[str] | None, *, exists: bool) -> None:
    """ConfigError for an unknown task, and for a workdir of no run where it must exist by now. tasks: None or (): those of the run."""
    if tasks:
        check_tasks(tasks, ALL)
    if exists:
        read_config(workdir)


def problems(config: Config, workdir: str, devices: int | None) -> Iterator[ConfigError]:
    """What is wrong with a config that is sound in itself. devices: of the whole run, where it is known how many there will be."""
    for field, path in _paths(config, begun=bool(saved_steps(workdir))):
        if path is not None and (missing := _missing(path)):
            here = "" if os.path.isabs(missing) else f" in {Path.cwd()}"
            yield ConfigError(f"config.{field} = {path!r}: there is no {missing}{here}; {how_to_set(f'config.{field}')}")
    yield from _refused(functools.partial(check_workdir, workdir, config))
    yield from _refused(functools.partial(_check_devices, config, devices))


def _refused(check: Callable[[], None]) -> Iterator[ConfigError]:
    try:
        check()
    except ConfigError as error:
        yield error


def _missing(path: str) -> str | None:
    """What is not there of a path; None where all is, or where it is no path of this machine (https://..., package:...)."""
    fixed = PATTERN.split(path, maxsplit=1)[0]
    looked = path if fixed == path else os.path.dirname(fixed) or "."
    return None if ":" in path or os.path.exists(looked) else looked


def _paths(config: Config, *, begun: bool) -> Iterator[tuple[str, str | None]]:
    """(field, path) of what the run reads. A run that has begun has its vocabulary and its weights in its checkpoint."""
    if config.data.kind in IN_FILES:
        yield "data.path", config.data.path
    for number, source in enumerate(config.data.sources):
        if source.kind in IN_FILES:
            yield f"data.sources[{number}].path", source.path
        yield f"data.sources[{number}].index", source.index
    yield "data.index", config.data.index
    yield "data.features", config.data.features
    if not begun:
        yield "data.tokenizer_path", config.data.tokenizer_path
        yield "model.image.pretrained", config.model.image.pretrained
        yield "model.text.pretrained", config.model.text.pretrained


def _check_devices(config: Config, devices: int | None) -> None:
    """ConfigError where the mesh cannot be, or batch and bank do not divide over it."""
    mesh = config.mesh
    if devices is None and mesh.data < 1:
        return
    if devices is not None:
        mesh_sizes(mesh, devices)
    check_divides(devices or mesh.data * mesh.fsdp * mesh.tensor, config)
