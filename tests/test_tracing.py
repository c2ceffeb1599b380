"""Traces of steps: by config and by a signal; what is in them can be read."""

import dataclasses
import os
import signal

import jax
from train_fakes import ROWS, TOKENIZER, FakeTrainer, fake_batches, tiny_config

from bacl_jax.config_watch import WatchConfig
from bacl_jax.train import goodput
from bacl_jax.train.checkpoint import Checkpoints
from bacl_jax.train.hooks import Preemption
from bacl_jax.train.loop import Loop
from bacl_jax.train.tracing import Asked


def steps_of(folder):
    """Numbers of the steps in a trace, and the names of all events of the loop."""
    (path,) = folder.glob("*.xplane.pb")
    assert len(list(folder.glob("*.trace.json.gz"))) == 1
    events = [event for plane in jax.profiler.ProfileData.from_file(str(path)).planes for line in plane.lines for event in line.events]
    steps = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
    return steps, {event.name for event in events} & {*goodput.ACTIVITIES}


def test_steps_are_traced_by_config_and_by_signal(tmp_path, capsys):
    config = tiny_config(steps=12, save_every=4)
    config = dataclasses.replace(config, watch=WatchConfig(trackers=(), trace_from=3, trace_steps=2))

    def batches(start, partners):
        for step, batch in fake_batches(config)(start, partners):
            if step == 6:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield step, batch

    before = signal.getsignal(signal.SIGUSR1)
    with Asked() as asked, Checkpoints(tmp_path) as checkpoints:
        made = {"trainer": FakeTrainer(), "checkpoints": checkpoints, "rows": ROWS, "tokenizer": TOKENIZER}
        outcome = Loop(config=config, batches=batches, asked=asked, **made).run(Preemption())
    assert outcome.status == "done"
    assert signal.getsignal(signal.SIGUSR1) == before
    traces = tmp_path / "profile" / "plugins" / "profile"
    assert sorted(path.name for path in traces.iterdir()) == ["steps_3_to_4", "steps_7_to_8"]
    assert steps_of(traces / "steps_3_to_4") == ([3, 4], {"data"})
    steps, beside = steps_of(traces / "steps_7_to_8")
    assert steps == [7, 8]
    assert {"data"} <= beside
    assert capsys.readouterr().out.count("traced: ") == 2
    (start,) = goodput.read(tmp_path)
    assert start.seconds["tracing"] > 0


def test_a_trace_that_the_end_cuts_is_written(tmp_path):
    config = dataclasses.replace(tiny_config(steps=3), watch=WatchConfig(trackers=(), trace_from=2, trace_steps=50))
    with Checkpoints(tmp_path) as checkpoints:
        made = {"trainer": FakeTrainer(), "checkpoints": checkpoints, "rows": ROWS, "tokenizer": TOKENIZER}
        Loop(config=config, batches=fake_batches(config), **made).run(Preemption())
    steps, _ = steps_of(tmp_path / "profile" / "plugins" / "profile" / "steps_2_to_51")
    assert steps == [2, 3]


def test_a_signal_is_taken_once():
    with Asked() as asked:
        assert not asked.taken()
        signal.raise_signal(signal.SIGUSR1)
        assert asked.taken()
        assert not asked.taken()
