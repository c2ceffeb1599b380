"""What `launch.train --check` does: everything that can be known of a run before it is trained, and the plan of it. Writes nothing.

It comes in three stages, and each finds all that is wrong in it: what needs no device (launch/early.py); data and mesh; the compiled step.
The next one begins where nothing was found.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from rich.filesize import decimal as size

from bacl_jax.config import Config, ConfigError
from bacl_jax.data.order import PartnerLists
from bacl_jax.data.source import DataSet
from bacl_jax.errors import CheckpointError, DataError
from bacl_jax.mesh import make_mesh, to_global
from bacl_jax.rules import check_divides
from bacl_jax.settings import Problems
from bacl_jax.train import plan
from bacl_jax.train.checkpoint import Checkpoints, Position
from bacl_jax.train.processes import wait_for_all
from launch import beginning, check_page, distributed, session

ROWS = 8  # of each source and split that are decoded, beside those of the measured steps
STEPS = 5  # that are measured, after a first one


def run(config: Config, workdir: str) -> None:
    """Prints the plan of the run. Problems where the run would fail, with a line for each reason that was found."""
    found: list[Exception] = []
    with distributed.joined(config, workdir):
        dataset = _try(found, lambda: beginning.read_data(config))
        _try(found, lambda: check_divides(make_mesh(config.mesh).size, config))
        if dataset is not None:
            _try(found, lambda: beginning.check_rows(workdir, dataset))
            found += unreadable(dataset, config)
        if found or dataset is None:
            raise Problems(found)
        with Checkpoints(workdir, read_only=True) as checkpoints:
            _plan(config, dataset, checkpoints, found)
        if found:
            raise Problems(found)


def _try(found: list[Exception], ask: Callable[[], Any]) -> Any:
    """What `ask` gives, None where it finds something wrong."""
    try:
        return ask()
    except (ConfigError, DataError, CheckpointError) as error:
        found.append(error)
        return None


def unreadable(dataset: DataSet, config: Config) -> list[DataError]:
    """The errors of the first rows of each source and split; with data.on_error = skip those of one all of whose first rows have one."""
    found: list[DataError] = []
    for source, rows in _first_rows(dataset):
        errors = []
        for row in rows:
            try:
                if source[row].picture is not None:
                    source[row].decoded()
            except DataError as error:
                errors.append(error)
        if config.data.on_error == "raise" or len(errors) == len(rows):
            found += errors
    return found


def _first_rows(dataset: DataSet) -> Iterator[tuple[Any, range]]:
    begin = 0
    for part in dataset.parts():
        start = begin if part.start is None else part.start
        begin = start + part.rows
        yield dataset.train, range(start, min(start + ROWS, begin))
    for split in dataset.splits.values():
        if len(split.source):
            yield split.source, range(min(ROWS, len(split.source)))


def _plan(config: Config, dataset: DataSet, checkpoints: Checkpoints, found: list[Exception]) -> None:
    """Prints the plan, and adds what the machine is too small for."""
    run = _try(found, lambda: session.open_run(config, dataset, checkpoints))
    position = _try(found, lambda: _position(checkpoints))
    if run is None or position is None:
        return
    batches = run.batches(0, PartnerLists())
    first = _try(found, lambda: next(batches))
    if first is None:
        return
    needs = plan.needs(run.trainer, to_global(run.trainer.mesh, first[1]))
    wait_for_all("the step is compiled")
    measured = _try(found, lambda: _measured(run, needs, itertools.chain([first], batches))) if needs.fits else None
    disk = check_page.Disk(
        at_once=plan.checkpoints_at_once(config, evaluated=run.is_evaluated),
        there=sum(path.stat().st_size for path in checkpoints.directory.rglob("*") if path.is_file()),
        free=shutil.disk_usage(next(path for path in checkpoints.directory.parents if path.exists())).free,
    )
    check_page.show(run, needs, position, disk, measured)
    found += too_small(config, needs, disk)


def _measured(run: session.Run, needs: plan.Needs, batches: Iterator[Any]) -> tuple[float, float]:
    """Seconds of a step and of its wait for the batch. The state is a fresh one, with the published weights that the config names."""
    state = beginning.begin(run.config, run.trainer, run.trainer.init(run.config.seed))
    run.check_weights(state)
    return plan.seconds_a_step(run.trainer, needs.compiled, state, batches, STEPS)


def _position(checkpoints: Checkpoints) -> Position:
    """Where the run goes on; every file of that checkpoint is read."""
    if not checkpoints.steps():
        return Position()
    return Position(**checkpoints.read_json("position", checkpoints.checked_step(None)))


def too_small(config: Config, needs: plan.Needs, disk: check_page.Disk) -> Iterator[ConfigError]:
    """What the machine has too little of: memory of a device, room on the disk."""
    if not needs.fits:
        has = "less" if needs.limit is None else size(needs.limit)
        yield ConfigError(
            f"a step needs {size(needs.memory)} on a device, which has {has}: raise --config.train.micro_batches (now "
            f"{config.train.micro_batches}) or --config.mesh.fsdp (now {config.mesh.fsdp}), set --config.model.remat (now "
            f"{config.model.remat}), or lower --config.train.batch_size (now {config.train.batch_size})"
        )
    if disk.lacks(needs.checkpoint) > 0:
        yield ConfigError(
            f"checkpoints need {size(disk.at_once * needs.checkpoint)} on the disk of the workdir, and {size(disk.free)} are free: "
            f"make room, lower --config.train.keep (now {config.train.keep}), or take another --workdir"
        )
