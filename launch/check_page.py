"""The plan of a run as `launch.train --check` prints it."""

import dataclasses
import datetime
import math
from collections.abc import Iterator

import jax
from rich.console import Console
from rich.filesize import decimal as size
from rich.table import Table

from bacl_jax.mesh import BATCH_AXES
from bacl_jax.train.checkpoint import Position
from bacl_jax.train.plan import Needs
from launch.session import Run


@dataclasses.dataclass(frozen=True)
class Disk:
    """at_once: checkpoints that lie there at most; there: bytes of those that do now; free: bytes beside them."""

    at_once: int
    there: int
    free: int

    def lacks(self, checkpoint: int) -> int:
        """Bytes that are missing for checkpoints of this size; below 0: those that remain."""
        return self.at_once * checkpoint - self.there - self.free


def show(run: Run, needs: Needs, position: Position, disk: Disk, measured: tuple[float, float] | None) -> None:
    """measured: seconds of a step, and those of them that it waits for its batch; None: it does not fit."""
    table = Table("", "", title="plan of the run", title_justify="left", show_header=False)
    for rows in (_data(run), _work(run, needs, position, measured), _machine(run, needs, disk), _results(run)):
        for name, value in rows:
            table.add_row(name, value)
        table.add_section()
    Console().print(table)


def _data(run: Run) -> Iterator[tuple[str, str]]:
    config, dataset = run.config, run.dataset
    yield "data", dataset.description
    for part in dataset.parts():
        yield f"training {part.name}".strip(), f"{part.rows:,} rows"
    for name, split in dataset.splits.items():
        yield name, f"{len(split.source):,} pictures"
    yield "tokenizer", f"{config.data.tokenizer}, {run.tokenizer.vocab_size:,} tokens"


def _work(run: Run, needs: Needs, position: Position, measured: tuple[float, float] | None) -> Iterator[tuple[str, str]]:
    config, train, mesh = run.config, run.config.train, run.trainer.mesh
    steps = max(train.steps - position.step, 0)
    yield "begins", f"at step {position.step:,} of its checkpoint" if position.step else "anew, at step 0"
    yield "steps", f"{train.steps:,}, of which {steps:,} are left" if position.step else f"{train.steps:,}"
    rows = train.batch_size // math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    yield "batch", f"{train.batch_size:,} pairs, {rows:,} a device, in {_count(train.micro_batches, 'part')}"
    yield "samples", f"{train.steps * train.batch_size:,}"
    for name, value in run.statistics(train.steps).items():
        place, _, what = name.rpartition("/")
        if what == "epochs":
            yield f"epochs {place.removeprefix('data').strip('/')}".strip(), f"{value:,.2f}"
    samples, patches = train.steps * train.batch_size, math.prod(run.trainer.grid)
    yield "tokens", f"{samples * config.data.context_length:,} of text, padding included; {samples * patches:,} of images"
    yield "parameters", f"{sum(needs.parameters.values()):,}, of which {needs.trained:,} are trained"
    for name, count in needs.parameters.items():
        yield f"  {name}", f"{count:,}"
    yield "FLOPs", f"{needs.flops:.3e} a step, {needs.flops * steps:.3e} in all"
    if measured is None:
        yield "time", "not measured: a step does not fit"
        return
    seconds, waited = measured
    left = datetime.timedelta(seconds=round(steps * seconds))
    yield "time", f"{left} for {steps:,} steps, without compiling, evaluations and checkpoints"
    yield "  measured here", f"{seconds:.3g} s a step, of which {waited:.2g} s wait for the batch; {needs.flops / seconds:.3g} FLOP/s"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _machine(run: Run, needs: Needs, disk: Disk) -> Iterator[tuple[str, str]]:
    train, mesh = run.config.train, run.trainer.mesh
    shape = " x ".join(f"{name} {length}" for name, length in mesh.shape.items())
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    yield "devices", f"{mesh.size} {mesh.devices.flat[0].device_kind}{processes}: {shape}"
    has = "unknown" if needs.limit is None else size(needs.limit)
    shared = ", its share of the machine's" if mesh.devices.flat[0].platform == "cpu" else ""
    yield "memory of a device", f"{size(needs.memory)} of {has}{shared}"
    minutes = "" if train.save_minutes is None else f" and every {train.save_minutes:g} minutes"
    best = ", and the best" if disk.at_once > train.keep + 1 else ""
    yield "checkpoints", f"{size(needs.checkpoint)} each, every {train.save_every:,} steps{minutes}; the newest {train.keep} are kept{best}"
    yield "disk", f"up to {size(disk.at_once * needs.checkpoint)}, one being written; {size(disk.there)} are there, {size(disk.free)} free"


def _results(run: Run) -> Iterator[tuple[str, str]]:
    config, train = run.config, run.config.train
    tasks = ", ".join(config.eval.tasks)
    if run.is_evaluated:
        early = ", ".join(task for task in config.eval.tasks if task != "localization")
        every = f"every {train.eval_every:,} steps and at the end" if train.eval_every else "at the end"
        yield "evaluated", f"{early or 'nothing'} on {config.eval.split}, {every}"
    else:
        yield "evaluated", "not while training: " + ("no task" if not tasks else f"{config.eval.split} has no rows")
    split = run.reported_split()
    yield "reported at the end", f"{tasks} on {split}" if split and tasks else "none: " + ("no task" if not tasks else "no split has rows")
