"""The training loop. There is one, and its order is this:

    evaluate (the parameters after the step just done) -> save -> leave, where the end or a signal has come -> partner lists
    -> fetch the batch -> step -> metrics of the step before

A step is only queued: metrics are read one step late, so the next batch goes to the devices while they work on this one.

What happens at a step depends on the step alone (save minutes and signals aside, which change no number), so a run that was
stopped anywhere and resumed is bit for bit the run that was not.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, cast, runtime_checkable

import jax
import numpy as np

from bacl_jax.config import Config, ConfigError
from bacl_jax.data.order import PartnerList, PartnerLists
from bacl_jax.data.stages import Stages
from bacl_jax.mesh import to_global, to_host
from bacl_jax.objective.bank import Bank
from bacl_jax.train.checkpoint import Checkpoints, Position, check_rows
from bacl_jax.train.goodput import Goodput
from bacl_jax.train.hooks import Preemption, SaveClock, return_freed_memory
from bacl_jax.train.processes import compile_together
from bacl_jax.train.services import Look
from bacl_jax.train.state import TrainState
from bacl_jax.train.tracing import Asked
from bacl_jax.train.watching import Watching
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
    check:     of the state that the run begins with, before it is trained; raises what is wrong.
    begin:     what a run that has no checkpoint makes of its fresh state, such as published weights in place of random ones.
    statistics: of the data read before a step, for its line in the log.
    stages:    where the readers of the batches spend their time.
    look:      what the evaluation of a step has for trackers beside its results.
    asked:     whether a trace of the next steps is asked for.
    began:     of the process, by time.monotonic(), from which on its time is accounted for; None: when `run` is called.
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
    check: Callable[[TrainState], None] = lambda state: None
    begin: Callable[[TrainState], TrainState] = lambda state: state
    statistics: Callable[[int], Mapping[str, float]] = lambda step: {}
    stages: Stages = dataclasses.field(default_factory=Stages)
    look: Callable[[int], Look | None] = lambda step: None
    asked: Asked = dataclasses.field(default_factory=Asked)
    began: float | None = None

    def run(self, preemption: Preemption) -> Outcome:
        """Trains from the newest checkpoint, or from the start, to train.steps.

        Raises NonFiniteError after train.halt_after_nonfinite skipped steps in a row.
        """
        account = Goodput(self.checkpoints.workdir, began=self.began)
        state, position, partners = self._start()
        self.check(state)
        watching = Watching(
            self.config,
            self.checkpoints.workdir,
            position,
            account=account,
            headline=self.headline,
            statistics=lambda step: {**self.statistics(step), **self._partner_rows(partners, step)},
            stages=self.stages,
            asked=self.asked,
            devices=list(self.trainer.mesh.devices.flat),
        )
        with watching:
            return self._run(state, position, partners, watching, preemption)

    def _partner_rows(self, partners: PartnerLists, step: int) -> dict[str, float]:
        """How many rows of the batch of the step just done were partners, where they are drawn."""
        return {"data/partner_rows": partners.replaced_at(step - 1)} if self.config.objective.bns.draws_partners else {}

    def _start(self) -> tuple[TrainState, Position, PartnerLists]:
        restored = self.checkpoints.restore(self.trainer.abstract_state(), self.rows)
        partners = PartnerLists()
        if restored is None:
            return self.begin(self.trainer.init(self.config.seed)), Position(), partners
        if self.config.objective.bns.draws_partners:  # the next list is made of the bank's rows
            check_rows(
                f"the memory bank of step {restored.position.step}", np.asarray(to_host(cast(Bank, restored.state.bank).index)), self.rows
            )
        for one in restored.partners:
            partners.put(one)
        position, metric = restored.position, self.headline if self.config.train.keep_best else None
        if position.best_metric != metric:  # values of two metrics, or on two splits, cannot be compared: the best is sought anew
            position = dataclasses.replace(position, best_step=None, best_value=None, best_metric=metric)
        return restored.state, position, partners

    def _run(self, state: TrainState, position: Position, partners: PartnerLists, watch: Watching, preemption: Preemption) -> Outcome:
        train, bns, account, log = self.config.train, self.config.objective.bns, watch.account, watch.log
        clock = SaveClock(train.save_minutes)
        step = start = position.step
        source = self.batches(start, partners)
        while True:
            best = position.best_step
            if self._is_evaluated(step) and step > start:
                position = self._evaluate(state, dataclasses.replace(position, step=step), watch)
            stop = step >= train.steps or preemption.reached(step)
            if step > start and (
                stop or step % train.save_every == 0 or position.best_step != best or (step % train.log_every == 0 and clock.due())
            ):
                log.flush()
                log.sync()
                number, spent = account.mark()
                position = dataclasses.replace(position, step=step, wall_seconds=log.wall_seconds, saved_by=number, spent=spent)
                with account.spent("checkpoint"):
                    self.checkpoints.save(state, position, partners.live(step), self.config, self.tokenizer)
                clock.reset()
            if stop:
                with account.spent("checkpoint"):
                    self.checkpoints.wait()
                return Outcome("done" if step >= train.steps else "preempted", state, position)
            if bns.draws_partners and step > 0 and step % bns.partner_every == 0:
                partners.put(self._partner_list(state, step + bns.list_delay, account))
                partners.drop_before(step)

            account.switch("steps")  # the first time `start` ends here
            waiting = time.perf_counter()
            with account.spent("data"):
                fetched, batch = next(source)
            began = time.perf_counter()
            if fetched != step:
                raise RuntimeError(f"the input pipeline gave the batch of step {fetched} where step {step} was due")
            batch = to_global(self.trainer.mesh, batch)
            if step == start:
                with account.spent("compilation"):
                    compile_together("the step", self.trainer.step, state, batch)
                    watch.speed.count(self.trainer.step, state, batch)
                    return_freed_memory()
            step += 1
            with watch.tracer.step(step):
                state, metrics = self.trainer.step(state, batch)
            watch.stepped(step, metrics, waited=began - waiting, began=began)
            watch.tracer.done(step, state)

    def _is_evaluated(self, step: int) -> bool:
        every, steps = self.config.train.eval_every, self.config.train.steps
        return self.evaluate is not None and (step == steps or (every > 0 and step % every == 0))

    def _evaluate(self, state: TrainState, position: Position, watch: Watching) -> Position:
        """Logs the results with the metrics of the step; the position with the best so far."""
        assert self.evaluate is not None
        jax.block_until_ready(state)  # the time until then is the step's
        with watch.account.spent("evaluation"):
            results = self.evaluate(state, position.step)
        watch.log.flush(results, position.step, self.look(position.step))
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

    def _partner_list(self, state: TrainState, active_from: int, account: Goodput) -> PartnerList:
        with account.spent("compilation"):
            compile_together(f"the search for the partners from step {active_from}", self.trainer.partner_lists, state)
        index, found = to_host(self.trainer.partner_lists(state))
        return PartnerList.from_bank(active_from, np.asarray(index), np.asarray(found))
