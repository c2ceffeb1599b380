import dataclasses
import functools
import json
import logging
import os
import signal
import time

import numpy as np
import pytest
from train_fakes import ROWS, TOKENIZER, FakeTrainer, assert_same, fake_batches, tiny_config

from bacl_jax.config import ConfigError
from bacl_jax.data.order import PartnerLists
from bacl_jax.data.stages import Stages
from bacl_jax.errors import CheckpointError, NonFiniteError
from bacl_jax.train import bottleneck, display, goodput, loop
from bacl_jax.train.checkpoint import Checkpoints
from bacl_jax.train.hooks import Preemption, SaveClock
from bacl_jax.train.loop import Loop
from bacl_jax.train.metrics import MetricLog


class Watched:
    """A jitted function that is called through another one."""

    def __init__(self, jitted, call):
        self.lower, self.call = jitted.lower, call

    def __call__(self, *arguments):
        return self.call(*arguments)


class StopAt(Preemption):
    """A preemption that comes after a given step."""

    def __init__(self, step=None):
        super().__init__()
        self.step = step

    def reached(self, step):
        return step == self.step


@functools.cache
def shared_trainer():
    return FakeTrainer()  # compiled once


def run(workdir, config, *, stop=None, trainer=None, seen=None, rows=ROWS, **settings):
    with Checkpoints(workdir, keep=config.train.keep) as checkpoints:
        made = Loop(
            config=config,
            trainer=trainer or shared_trainer(),
            batches=fake_batches(config, seen),
            rows=rows,
            checkpoints=checkpoints,
            tokenizer=TOKENIZER,
            **settings,
        )
        return made.run(StopAt(stop)), checkpoints.steps()


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_trains_saves_and_logs(tmp_path):
    outcome, saved = run(tmp_path, tiny_config())
    assert (outcome.status, outcome.position.step, int(outcome.state.step)) == ("done", 20, 20)
    assert saved == [15, 20]
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 21))
    for line in lines(tmp_path):
        assert line["samples_seen"] == 8 * line["step"]
        assert {"loss", "lr", "nonfinite", "wall_seconds", "data_wait_seconds", "step_seconds"} <= line.keys()


@pytest.mark.parametrize("stops", [[1], [5], [3, 4, 12], [7, 9, 16], [19]])
def test_stopped_and_resumed_is_uninterrupted(tmp_path, stops):
    """4 is the step of a partner list, 7 that of its taking effect; 5 is a regular save."""
    config, seen, whole_seen = tiny_config(), [], []
    whole, _ = run(tmp_path / "whole", config, seen=whole_seen)
    for stop in stops:
        outcome, _ = run(tmp_path / "parts", config, stop=stop, seen=seen)
        assert (outcome.status, outcome.position.step) == ("preempted", stop)
    outcome, _ = run(tmp_path / "parts", config, seen=seen)
    assert_same(outcome.state, whole.state)
    assert seen == whole_seen
    for part, one in zip(lines(tmp_path / "parts"), lines(tmp_path / "whole"), strict=True):
        times = {"wall_seconds", "data_wait_seconds", "step_seconds"}
        assert {k: v for k, v in part.items() if k not in times} == {k: v for k, v in one.items() if k not in times}
    walls = [line["wall_seconds"] for line in lines(tmp_path / "parts")]
    assert walls == sorted(walls)


def test_what_was_logged_after_the_checkpoint_is_cut(tmp_path):
    config = tiny_config()
    whole, _ = run(tmp_path / "whole", config)

    class Killed(Exception):
        pass

    class Dies(FakeTrainer):
        def _step(self, state, batch):
            return super()._step(state, batch)

        def __init__(self):
            super().__init__()
            step, self.count = self.step, 0

            def counted(state, batch):
                self.count += 1
                if self.count == 9:
                    raise Killed
                return step(state, batch)

            self.step = Watched(step, counted)

    with pytest.raises(Killed):
        run(tmp_path / "parts", config, trainer=Dies())
    assert lines(tmp_path / "parts")[-1]["step"] > 5
    outcome, _ = run(tmp_path / "parts", config)
    died, ended = goodput.read(tmp_path / "parts")
    assert (died.clean, died.step, ended.clean, ended.step) == (False, 8, True, 20)
    assert died.seconds["lost"] > 0
    assert ended.seconds["lost"] == 0
    assert [line["step"] for line in lines(tmp_path / "parts")] == list(range(1, 21))
    assert_same(outcome.state, whole.state)


def test_a_finished_run_is_left_alone(tmp_path):
    config = tiny_config()
    whole, _ = run(tmp_path, config)
    before = lines(tmp_path)
    again, saved = run(tmp_path, config)
    assert again.status == "done"
    assert_same(again.state, whole.state)
    assert saved == [15, 20]
    assert lines(tmp_path) == before


def test_partner_lists_act_after_their_delay(tmp_path):
    seen, plain = [], []
    config = tiny_config()
    run(tmp_path, config, seen=seen)
    source = fake_batches(config, plain)(0, PartnerLists())
    for _ in range(20):
        next(source)
    changed = [step for (step, rows), (_, own) in zip(seen, plain, strict=True) if rows != own]
    assert changed[0] == 4 + 3  # made after step 4, acts list_delay = 3 steps later
    assert len(changed) > 6  # not all: an anchor that is not in the small bank has no partner


def test_a_bank_of_more_rows_than_the_data_have(tmp_path):
    """Before the first list is made, the bank alone tells."""
    config = tiny_config(steps=3)
    run(tmp_path, config)
    with pytest.raises(CheckpointError, match=r"the memory bank of step 3 names training row \d+, but the training data have 2 rows"):
        run(tmp_path, config, rows=2)


def test_order_of_the_loop(tmp_path, monkeypatch):
    events = []
    trainer = FakeTrainer()
    step = trainer.step

    def counted(state, batch):
        events.append(f"step {int(state.step) + 1}")
        return step(state, batch)

    trainer.step = Watched(step, counted)
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda self, state, position, *rest: (events.append(f"save {position.step}"), save(self, state, position, *rest)),
    )

    def evaluate(state, step):
        assert int(state.step) == step
        events.append(f"evaluate {step}")
        return {"validation/retrieval/i2t_R@1": 50.0}

    config = tiny_config(steps=4, eval_every=2, save_every=2)
    run(tmp_path, config, trainer=trainer, evaluate=evaluate)
    assert events == ["step 1", "step 2", "evaluate 2", "save 2", "step 3", "step 4", "evaluate 4", "save 4"]


def test_a_batch_goes_to_the_devices_before_the_step_before_it_is_waited_for(tmp_path, monkeypatch):
    """Its transfer and the step overlap: nothing but the step before the last is awaited when it starts."""
    events = []
    place, read = loop.to_global, MetricLog.flush
    monkeypatch.setattr(loop, "to_global", lambda mesh, batch: (events.append("placed"), place(mesh, batch))[1])

    def flush(self, *given):
        if self._pending is not None:
            events.append(f"read {self._pending[0]}")
        read(self, *given)

    monkeypatch.setattr(MetricLog, "flush", flush)
    run(tmp_path, tiny_config(steps=4, save_every=100))
    assert events == ["placed", "placed", "read 1", "placed", "read 2", "placed", "read 3", "read 4"]


def test_a_run_that_waits_for_its_data_says_so_and_its_log_shows_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(bottleneck, "WINDOW", 0.1)
    config, stages = tiny_config(steps=12, save_every=100), Stages()

    def slow(start, partners):
        for pair in fake_batches(config)(start, partners):
            with stages.spent("reading"):
                time.sleep(0.02)
            yield pair

    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING, "bacl_jax"):
        made = {"trainer": shared_trainer(), "checkpoints": checkpoints, "rows": ROWS, "tokenizer": TOKENIZER}
        Loop(config=config, batches=slow, stages=stages, **made).run(StopAt())
    (message,) = [record.getMessage() for record in caplog.records]
    assert "waited for data" in message
    assert "Storage is the bottleneck: the readers spent 100% reading, 0% decoding, 0% tokenising." in message
    waits = [line["data_wait_seconds"] for line in lines(tmp_path)]
    assert min(waits[:-1]) >= 0.02  # a line is written one step late
    assert all(line["step_seconds"] > 0 for line in lines(tmp_path)[1:])


def test_evaluation_shares_the_line_of_its_step(tmp_path):
    config = tiny_config(eval_every=7, log_every=5)
    run(tmp_path, config, evaluate=lambda state, step: {"validation/retrieval/i2t_R@1": float(step)})
    assert [line["step"] for line in lines(tmp_path)] == [5, 7, 10, 14, 15, 20]
    evaluated = {line["step"]: line["validation/retrieval/i2t_R@1"] for line in lines(tmp_path) if "validation/retrieval/i2t_R@1" in line}
    assert evaluated == {7: 7.0, 14: 14.0, 20: 20.0}
    assert all("loss" in line for line in lines(tmp_path))


def test_the_best_is_saved_and_kept(tmp_path):
    config = tiny_config(eval_every=3, keep=1, keep_best="i2t_R@1", save_every=5)
    results = {3: 1.0, 6: 4.0, 9: 2.0, 12: 4.0, 15: 0.0, 18: 3.0, 20: 1.0}
    _, saved = run(tmp_path, config, stop=10, evaluate=lambda state, step: {"m": results[step]}, headline="m")
    assert saved == [6, 10]
    outcome, saved = run(tmp_path, config, evaluate=lambda state, step: {"m": results[step]}, headline="m")
    assert saved == [6, 20]
    assert (outcome.position.best_step, outcome.position.best_value) == (6, 4.0)


@pytest.mark.parametrize(("keep_best", "headline", "kept"), [("i2t_mAP", "b", [12, 15]), (None, "a", [15])])
def test_another_metric_starts_the_search_for_the_best_anew(tmp_path, keep_best, headline, kept):
    evaluate = lambda state, step: {"a": 100.0 - step, "b": {12: 3.0}.get(step, 1.0)}  # noqa: E731
    config = tiny_config(eval_every=3, keep=1, keep_best="i2t_R@1", save_every=5, steps=10)
    _, saved = run(tmp_path, config, evaluate=evaluate, headline="a")
    assert saved == [3, 10]
    config = tiny_config(eval_every=3, keep=1, keep_best=keep_best, save_every=5, steps=15)
    outcome, saved = run(tmp_path, config, evaluate=evaluate, headline=headline)
    assert saved == kept
    best = outcome.position
    assert (best.best_step, best.best_value, best.best_metric) == ((12, 3.0, "b") if keep_best else (None, None, None))


def test_an_unknown_best_metric_is_refused_with_the_known_ones(tmp_path):
    config = tiny_config(eval_every=2, keep_best="i2t_mAP")
    with pytest.raises(ConfigError, match=r"config.train.keep_best = 'i2t_mAP': .* it gives validation/retrieval/i2t_R@1; set"):
        run(tmp_path, config, evaluate=lambda state, step: {"validation/retrieval/i2t_R@1": 1.0}, headline="validation/retrieval/i2t_mAP")


def test_halts_after_too_many_nonfinite_steps(tmp_path):
    config = tiny_config(halt_after_nonfinite=3, log_every=10)
    with pytest.raises(NonFiniteError, match=r"halted at step 9: .* not finite in 3 steps .*halt_after_nonfinite = 3.* new --workdir"):
        run(tmp_path, config, trainer=FakeTrainer(poison=6))


def test_a_nonfinite_loss_is_null_in_the_log(tmp_path):
    run(tmp_path, tiny_config(halt_after_nonfinite=100), trainer=FakeTrainer(poison=18))
    assert [line["loss"] is None for line in lines(tmp_path)] == [False] * 18 + [True] * 2


def test_saves_by_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr(SaveClock, "due", lambda self: True)
    steps = []
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, state, position, *rest: (steps.append(position.step), save(self, state, position, *rest))
    )
    run(tmp_path, tiny_config(steps=4, save_every=100, save_minutes=0.5))
    assert steps == [1, 2, 3, 4]


def test_save_clock():
    assert not SaveClock(None).due()
    assert not SaveClock(10).due()
    clock = SaveClock(1e-9)
    assert clock.due()


def test_a_batch_of_another_step_is_an_error(tmp_path):
    config = tiny_config()
    with Checkpoints(tmp_path) as checkpoints:
        made = Loop(
            config=config,
            trainer=FakeTrainer(),
            batches=lambda start, partners: fake_batches(config)(start + 1, partners),
            rows=ROWS,
            checkpoints=checkpoints,
            tokenizer=TOKENIZER,
        )
        with pytest.raises(RuntimeError, match="gave the batch of step 1 where step 0 was due"):
            made.run(StopAt())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_set_a_flag_and_are_given_back(number):
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), number)
        assert preemption.reached(1)
    assert signal.getsignal(number) == before


def test_a_second_interrupt_interrupts():
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reached(0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("before", [True, False])
def test_after_the_training_a_signal_interrupts(number, before):
    with Preemption() as preemption:
        if before:
            signal.raise_signal(number)
            with pytest.raises(KeyboardInterrupt):
                preemption.interrupt()
        else:
            preemption.interrupt()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)


@pytest.mark.parametrize(("terminal", "metric", "shows"), [(True, "i2t_R@1", "R@1 37.5 %"), (False, "t2i_mAP", "t2i_mAP 37.5 %")])
def test_progress_shows_step_loss_result_rate_and_time(monkeypatch, capsys, terminal, metric, shows):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setattr(display._Lines, "SECONDS", 0.0)
    shown = display.make_display(0, 100, f"validation/retrieval/{metric}")
    speed = {"pairs_per_second": 1234.4, "data_wait": 12.0, "mfu": 41.25, "memory_gib": 1.5}
    shown.update(1, {"loss": 2.0}, {"memory_gib": 1.5})
    shown.update(2, {"loss": 1.25, f"validation/retrieval/{metric}": 37.5}, speed)
    shown.update(3, {"loss": 1.125}, speed)
    shown.close()
    text = capsys.readouterr().out
    for part in ("step 3/100", "loss 1.125", shows, "1,234 pairs/s", "left", "MFU 41.2 %", "data wait 12 %"):
        assert part in text
    assert ("memory 1.5 GiB" in text) == terminal


def test_outcome_is_that_of_the_plain_sum(tmp_path):
    """The fake's own arithmetic, so that the tests above compare something that moves."""
    outcome, _ = run(tmp_path, tiny_config())
    first = FakeTrainer().init(0)
    assert not np.array_equal(np.asarray(first.params["towers"]["w"]), np.asarray(outcome.state.params["towers"]["w"]))
    assert dataclasses.replace(outcome.position, wall_seconds=0.0).step == 20
