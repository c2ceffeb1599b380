"""The training loop. There is one, and its order is this:

    evaluate (the parameters after the step just done) -> save -> leave, where the end or a signal has come -> partner lists
    -> fetch the batch -> step -> metrics of the step before

A step is only queued: metrics are read one step late, so the next batch goes to the devices while they work on this one.

What happens at a step depends on the step alone (save minutes and signals aside, which change no number), so a run that was
stopped anywhere and resumed is bit for bit the run that was not.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from bacl_jax.config import Config, ConfigError
from bacl_jax.data.order import PartnerList, PartnerLists
from bacl_jax.data.stages import Stages
from bacl_jax.mesh import to_global, to_host
from bacl_jax.train.bottleneck import Bottleneck
from bacl_jax.train.checkpoint import Checkpoints, Position, check_rows
from bacl_jax.train.hooks import Preemption, SaveClock, make_progress, return_freed_memory
from bacl_jax.train.metrics import MetricLog
from bacl_jax.train.processes import compile_together
from bacl_jax.train.state import TrainState
from bacl_jax.types import Batch

Batches = Callable[[int, PartnerLists], Iterator[tuple[int, Batch]]]  # (first step, partner lists) -> (step, this host's rows)
Evaluate = Callable[[TrainState, int], Mapping[str, float]]  # (state, step) -> result name -> number, more is better for `headline`


@runtime_checkable
class Trains(Protocol):
    """What the loop asks of a trainer (train/step.py)."""

    mesh: Any
    step: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Any]]]
    partner_lists: Callable[[TrainState], tuple[Any, Any]]

    def init(self, seed: int) -> TrainState: ...

    def abstract_state(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the loop ended."""

    status: Literal["done", "preempted"]
    state: TrainState
    position: Position


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """Everything a run needs.

    rows:      of the training source.
    tokenizer: its JSON, saved with each checkpoint.
    evaluate:  None: the run is never evaluated.
    begin:     what a run that has no checkpoint makes of its fresh state, such as published weights in place of random ones.
    statistics: of the data read before a step, for its line in the log.
    stages:    where the readers of the batches spend their time.
    headline:  the result that is shown and, with train.keep_best, the one by which the best checkpoint is chosen; more is better.
    """

    config: Config
    trainer: Trains
    batches: Batches
    rows: int
    checkpoints: Checkpoints
    tokenizer: dict[str, Any]
    evaluate: Evaluate | None = None
    headline: str | None = None
    begin: Callable[[TrainState], TrainState] = lambda state: state
    statistics: Callable[[int], Mapping[str, float]] = lambda step: {}
    stages: Stages = dataclasses.field(default_factory=Stages)

    def run(self, preemption: Preemption) -> Outcome:
        """Trains from the newest checkpoint, or from the start, to train.steps.

        Raises NonFiniteError after train.halt_after_nonfinite skipped steps in a row.
        """
        state, position, partners = self._start()
        train = self.config.train
        shown = make_progress(position.step, train.steps, train.batch_size, self.headline, position.best_value)
        log = MetricLog(
            self.checkpoints.workdir,
            log_every=train.log_every,
            halt_after_nonfinite=train.halt_after_nonfinite,
            batch_size=train.batch_size,
            start_step=position.step,
            wall_seconds=position.wall_seconds,
            show=shown.update,
            statistics=lambda step: {**self.statistics(step), **self._partner_rows(partners, step)},
        )
        with contextlib.closing(log), contextlib.closing(shown):
            return self._run(state, position, partners, log, preemption)

    def _partner_rows(self, partners: PartnerLists, step: int) -> dict[str, float]:
        """How many rows of the batch of the step just done were partners, where they are drawn."""
        return {"data/partner_rows": partners.replaced_at(step - 1)} if self.config.objective.bns.draws_partners else {}

    def _start(self) -> tuple[TrainState, Position, PartnerLists]:
        restored = self.checkpoints.restore(self.trainer.abstract_state(), self.rows)
        partners = PartnerLists()
        if restored is None:
            return self.begin(self.trainer.init(self.config.seed)), Position(), partners
        if self.config.objective.bns.draws_partners:  # the next list is made of the bank's rows
            check_rows(f"the memory bank of step {restored.position.step}", np.asarray(to_host(restored.state.bank.index)), self.rows)
        for one in restored.partners:
            partners.put(one)
        position, metric = restored.position, self.headline if self.config.train.keep_best else None
        if position.best_metric != metric:  # values of two metrics, or on two splits, cannot be compared: the best is sought anew
            position = dataclasses.replace(position, best_step=None, best_value=None, best_metric=metric)
        return restored.state, position, partners

    def _run(self, state: TrainState, position: Position, partners: PartnerLists, log: MetricLog, preemption: Preemption) -> Outcome:
        train, bns = self.config.train, self.config.objective.bns
        clock, watch = SaveClock(train.save_minutes), Bottleneck(self.config.data, self.stages)
        step = start = position.step
        source = self.batches(start, partners)
        while True:
            best = position.best_step
            if self._is_evaluated(step) and step > start:
                position = self._evaluate(state, dataclasses.replace(position, step=step), log)
            stop = step >= train.steps or preemption.reached(step)
            if step > start and (
                stop or step % train.save_every == 0 or position.best_step != best or (step % train.log_every == 0 and clock.due())
            ):
                log.flush()
                log.sync()
                position = dataclasses.replace(position, step=step, wall_seconds=log.wall_seconds)
                self.checkpoints.save(state, position, partners.live(step), self.config, self.tokenizer)
                clock.reset()
            if stop:
                self.checkpoints.wait()
                return Outcome("done" if step >= train.steps else "preempted", state, position)
            if bns.draws_partners and step > 0 and step % bns.partner_every == 0:
                partners.put(self._partner_list(state, step + bns.list_delay))
                partners.drop_before(step)

            waiting = time.perf_counter()
            fetched, batch = next(source)
            began = time.perf_counter()
            log.waited_for_data(began - waiting)
            if fetched != step:
                raise RuntimeError(f"the input pipeline gave the batch of step {fetched} where step {step} was due")
            batch = to_global(self.trainer.mesh, batch)
            if step == start:
                compile_together("the step", self.trainer.step, state, batch)
                return_freed_memory()
            state, metrics = self.trainer.step(state, batch)
            step += 1
            log.push(step, metrics)
            stepped = time.perf_counter() - began
            log.stepped(stepped)
            watch.took(step, waited=began - waiting, stepped=stepped)

    def _is_evaluated(self, step: int) -> bool:
        every, steps = self.config.train.eval_every, self.config.train.steps
        return self.evaluate is not None and (step == steps or (every > 0 and step % every == 0))

    def _evaluate(self, state: TrainState, position: Position, log: MetricLog) -> Position:
        """Logs the results with the metrics of the step; the position with the best so far."""
        assert self.evaluate is not None
        results = self.evaluate(state, position.step)
        log.flush(results, position.step)
        if self.headline is None or self.config.train.keep_best is None:
            return position
        if self.headline not in results:
            raise ConfigError(
                f"config.train.keep_best = {self.config.train.keep_best!r}: the evaluation gives no {self.headline}, it gives "
                f"{', '.join(sorted(results))}; set --config.train.keep_best to one of these or None"
            )
        value = results[self.headline]
        if position.best_value is not None and value <= position.best_value:
            return position
        return dataclasses.replace(position, best_step=position.step, best_value=value, best_metric=self.headline)

    def _partner_list(self, state: TrainState, active_from: int) -> PartnerList:
        compile_together(f"the search for the partners from step {active_from}", self.trainer.partner_lists, state)
        index, found = to_host(self.trainer.partner_lists(state))
        return PartnerList.from_bank(active_from, np.asarray(index), np.asarray(found))
