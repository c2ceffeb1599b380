"""Checkpoints of a run: DIR/checkpoints/<step>/<item>, written asynchronously by orbax.

Items: `params` (and `ema`, of the trained ones, where there is one) for evaluation alone; `opt_state`, `bank`, `rng`, `counters`;
`partners`, the live partner lists; `position`, `config` and `tokenizer` as JSON. Arrays are restored against an abstract state with
shardings, so any mesh reads what any other wrote.

A checkpoint becomes visible by one rename, after SHA256SUMS over its items was written into it (`sha256sum -c` reads it). One that
does not match is set aside under DIR/unreadable with a warning, and the one before is used: orbax itself does not notice a changed byte.
"""

import contextlib
import dataclasses
import os
import shutil
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bacl_jax import paths
from bacl_jax.config import Config, check_resumable, from_config_dict, to_dict
from bacl_jax.data.order import PartnerList
from bacl_jax.errors import CheckpointError
from bacl_jax.train.checkpoint_items import FEATURES, array_items, from_array_items, from_item, part, to_item
from bacl_jax.train.checksums import items_of, problem_of, write_sums_of_unfinished
from bacl_jax.train.processes import wait_for_all
from bacl_jax.train.state import TrainState
from bacl_jax.train.workdir import saved_steps

EVALUATED = ("params", "tokenizer")  # the items that an evaluation reads; `ema` in place of `params` where there is one


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run is, beside its state: completed steps, seconds of training so far, the best evaluation so far by `best_metric`.

    saved_by, spent: number of the start that saved it (from 1; 0: unknown), and its seconds by activity up to then (train/goodput.py).
    """

    step: int = 0
    wall_seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    best_metric: str | None = None
    saved_by: int = 0
    spent: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Restored:
    """state: on the mesh of the abstract state; partners: the lists alive at position.step; tokenizer: its JSON."""

    state: TrainState
    position: Position
    partners: list[PartnerList]
    tokenizer: dict[str, Any]


@dataclasses.dataclass
class _NewestAndBest:
    """orbax preservation policy: the `keep` newest checkpoints and the best one."""

    keep: int
    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        newest = {checkpoint.step for checkpoint in checkpoints[-self.keep :]}
        return [checkpoint.step in newest or checkpoint.step == self.best for checkpoint in checkpoints]


class _Manager(ocp.CheckpointManager):
    """The loop decides when a signal ends the run. Told of it, orbax 0.12 fails: it subtracts times with and without a time zone."""

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """The checkpoints of one workdir. `read_only` for evaluation: nothing is cleaned up or set aside."""

    def __init__(self, workdir: str | os.PathLike[str], *, keep: int = 2, read_only: bool = False):
        self.workdir = Path(workdir).absolute()
        self.directory = self.workdir / "checkpoints"
        self.read_only = read_only
        self._policy = _NewestAndBest(keep)
        if not read_only and jax.process_index() == 0:
            problems = {step: problem for step in self.steps() if (problem := problem_of(self.directory / str(step)))}
            good = [step for step in self.steps() if step not in problems]
            for step, problem in problems.items():
                self._set_aside(step, problem, f"that of step {good[-1]} is used" if good else "none is left, the run starts at step 0")
        wait_for_all("checkpoints were checked")
        callback = write_sums_of_unfinished(self.directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
            lightweight_initialize=True,
            async_options=None if read_only else ocp.AsyncOptions(post_finalization_callback=callback),
        )
        self._manager = _Manager(self.directory, options=options)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        return saved_steps(self.workdir)

    def save(
        self, state: TrainState, position: Position, partners: Iterable[PartnerList], config: Config, tokenizer: dict[str, Any]
    ) -> None:
        """Starts to write; returns when the arrays are copied off the devices. Waits for the save before, raises its error."""
        if position.step in self.steps():
            return
        jax.block_until_ready(state)  # on a CPU that plays several devices, copies beside a running step can starve its collectives
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in array_items(state).items()}
        if stored := {str(one.active_from): to_item(one) for one in partners}:
            items["partners"] = ocp.args.StandardSave(stored)
        for name, value in (("position", dataclasses.asdict(position)), ("config", to_dict(config)), ("tokenizer", tokenizer)):
            items[name] = ocp.args.JsonSave(value)
        self._policy.best = position.best_step
        with self._disk_errors():
            self._manager.save(position.step, args=ocp.args.Composite(**items))

    def restore(self, abstract: TrainState, rows: int) -> Restored | None:
        """The newest checkpoint, None if there is none. `abstract`: shapes and shardings; `rows`: of the training source.

        CheckpointError where a partner list names a row that the training source does not have.
        """
        if not self.steps():
            return None
        step = self.steps()[-1]
        templates = array_items(abstract)
        if FEATURES in templates and not (self.directory / str(step) / FEATURES).is_dir():
            raise CheckpointError(
                f"the checkpoint of step {step} has no stored features of the captions in the memory bank: the run went on without "
                "data.features, or with those of the image tower alone; go on with --config.data.features=None, or take another --workdir"
            )
        wanted: dict[str, Any] = {name: ocp.args.StandardRestore(tree) for name, tree in templates.items()}
        wanted |= {name: ocp.args.JsonRestore() for name in ("position", "tokenizer")}
        if (self.directory / str(step) / "partners").is_dir():
            wanted["partners"] = ocp.args.StandardRestore()
        found = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        partners = [from_item(int(start), one) for start, one in (found.get("partners") or {}).items()]
        for one in partners:
            check_rows(f"the partner list of step {one.active_from} in the checkpoint of step {step}", one.rows, rows)
            check_rows(f"the partner list of step {one.active_from} in the checkpoint of step {step}", one.partners, rows)
        self._policy.best = found["position"]["best_step"]
        state = from_array_items(abstract, {name: found[name] for name in templates})
        return Restored(state, Position(**found["position"]), sorted(partners, key=lambda one: one.active_from), found["tokenizer"])

    def restore_params(self, abstract_params: Any, step: int | None = None) -> tuple[int, Any]:
        """(step, parameters for evaluation): the averaged ones where the run keeps an average. None: the newest step.

        No average is kept of frozen parameters: they are read from `params`. No other item is looked at. CheckpointError where it cannot be
        read, or where a run beside this one removes it meanwhile.
        """
        step = self.checked_step(step, ("params",))
        folder = self.directory / str(step)
        if _evaluated(folder, ("params",)) == ("params",):
            return step, self._read(step, "params", ocp.args.StandardRestore(abstract_params))
        handler: Any = ocp.StandardCheckpointHandler()  # typed for a path class of its own, and takes any
        with self._reading(step, "ema"):
            averaged = part(abstract_params, handler.metadata(folder / "ema").tree)
        found = self._read(step, "ema", ocp.args.StandardRestore(averaged))
        if jax.tree.structure(averaged) == jax.tree.structure(abstract_params):
            return step, found
        if problem := problem_of(folder, ("params",)):
            raise CheckpointError(f"checkpoint {folder} cannot be read: {problem}")
        return step, paths.replaced(self._read(step, "params", ocp.args.StandardRestore(abstract_params)), found)

    def read_json(self, name: str, step: int | None = None) -> dict[str, Any]:
        """The JSON item `position`, `config` or `tokenizer` of a checkpoint. None: the newest step that has it. Errors as above."""
        return self._read(self.checked_step(step, (name,)), name, ocp.args.JsonRestore())

    def _read(self, step: int, name: str, how: Any) -> Any:
        """One item."""
        with self._reading(step, name):
            return self._manager.restore(step, args=ocp.args.Composite(**{name: how}))[name]

    @contextlib.contextmanager
    def _reading(self, step: int, name: str) -> Iterator[None]:
        """Where an item cannot be read and the checkpoint is no longer what was written, CheckpointError says so."""
        try:
            yield
        except Exception as error:
            folder = self.directory / str(step)
            if problem := problem_of(folder, (name,)) or problem_of(folder):  # a run that removes it may have begun with other items
                raise CheckpointError(f"checkpoint {folder} cannot be read: {problem}") from error
            raise

    def checked_step(self, step: int | None, items: Collection[str] | None = None) -> int:
        """`step`, or the newest one that matches its checksums, those of `items` alone if given. CheckpointError where there is none.

        "params" stands for the averaged parameters where a checkpoint has them.
        """
        steps = [one for one in self.steps() if step in (None, one)]
        for candidate in reversed(steps):
            folder = self.directory / str(candidate)
            problem = problem_of(folder, items and _evaluated(folder, items))
            if problem is None:
                return candidate
            if step is not None:
                raise CheckpointError(f"checkpoint {folder} cannot be read: {problem}")
            warnings.warn(f"checkpoint {folder} is ignored: {problem}", stacklevel=2)
        raise CheckpointError(
            f"no readable checkpoint {'' if step is None else f'of step {step} '}in {self.directory}, found {self.steps()}"
        )

    def wait(self) -> None:
        """Until the last save is on disk; raises its error."""
        with self._disk_errors():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def check_config(self, config: Config) -> None:
        """ConfigError where the newest checkpoint belongs to a config that differs in more than changeable fields.

        DIR/config.json says so first; this is for a workdir that lost it.
        """
        if self.steps() and not (self.workdir / "config.json").exists():
            check_resumable(from_config_dict(self.read_json("config")), config)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """CheckpointError, one line, where the disk is full: what was saved before is not touched."""
        try:
            yield
        except Exception as error:
            if "No space left" not in str(error) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            kept = f"the newest one is of step {self.steps()[-1]}" if self.steps() else "none was written before"
            raise CheckpointError(
                f"no space left for a checkpoint in {self.directory}: {kept}; make room, then the same command"
            ) from error

    def close(self) -> None:
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _set_aside(self, step: int, problem: str, instead: str) -> None:
        target = self.workdir / "unreadable" / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.directory / str(step)).rename(target)
        warnings.warn(f"checkpoint of step {step} is ignored: {problem}; moved to {target}; {instead}", stacklevel=3)


def _evaluated(folder: Path, items: Collection[str]) -> tuple[str, ...]:
    """`items` of a checkpoint, with `ema` in place of `params` where it was written with an average."""
    averaged = "ema" in items_of(folder)
    return tuple("ema" if name == "params" and averaged else name for name in items)


def check_rows(holder: str, held: np.ndarray, rows: int) -> None:
    """CheckpointError where `held`, training rows or -1, has one that is not among the first `rows`."""
    if (highest := held.max(initial=-1)) >= rows:
        raise CheckpointError(
            f"{holder} names training row {highest}, but the training data have {rows} rows: fewer than when it was written; "
            "take the data that the run was started with, or another --workdir"
        )
