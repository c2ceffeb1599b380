import json

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from bacl_jax.config import Config
from bacl_jax.train.metrics import MetricLog, cut_back
from bacl_jax.train.trackers import Trackers


def make(workdir, **settings):
    trackers = Trackers(Config(), workdir, settings.get("start_step", 0))
    return MetricLog(workdir, **({"log_every": 1, "halt_after_nonfinite": 5, "batch_size": 4, "trackers": trackers} | settings))


def numbers(loss):
    return {"loss": jnp.float32(loss), "nonfinite": jnp.float32(0)}


def read(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_read_one_step_late(tmp_path):
    log = make(tmp_path)
    log.push(1, numbers(1.0))
    assert read(tmp_path) == []
    log.push(2, numbers(2.0))
    assert [line["step"] for line in read(tmp_path)] == [1]
    log.flush()
    assert [line["loss"] for line in read(tmp_path)] == [1.0, 2.0]
    log.flush()
    assert len(read(tmp_path)) == 2
    log.close()


def test_only_every_nth_step_is_written_but_every_step_is_shown(tmp_path):
    shown = []
    log = make(tmp_path, log_every=3, show=lambda step, values: shown.append((step, values["loss"])))
    for step in range(1, 8):
        log.push(step, numbers(step))
    log.close()
    assert [line["step"] for line in read(tmp_path)] == [3, 6]
    assert [step for step, _ in shown] == [1, 2, 3, 4, 5, 6]


def test_data_wait_is_summed_over_the_steps_of_a_line(tmp_path):
    log = make(tmp_path, log_every=2)
    for step in range(1, 6):
        log.waited_for_data(0.5)
        log.push(step, numbers(0))
    log.close()
    assert [line["data_wait_seconds"] for line in read(tmp_path)] == [1.5, 1.0]  # a line is written one step late


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', [1, 2]),
        ('{"step": 1}\n{"step": 2, "lo', [1]),
        ('{"step": 1}\n', [1]),
        ('{"step": 1}\n5\n{"a": 1}\n[]\n', [1]),
        ("", []),
    ],
)
def test_cut_back(tmp_path, content, kept):
    (tmp_path / "metrics.jsonl").write_text(content)
    cut_back(tmp_path / "metrics.jsonl", 2)
    assert [line["step"] for line in read(tmp_path)] == kept


def test_a_fresh_start_drops_an_old_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    make(tmp_path).close()
    assert read(tmp_path) == []


def test_wall_seconds_go_on(tmp_path):
    log = make(tmp_path, start_step=3, wall_seconds=100.0)
    log.push(4, numbers(0))
    log.flush()
    log.close()
    assert 100 <= read(tmp_path)[0]["wall_seconds"] < 160


def test_tensorboard_gets_the_same_numbers(tmp_path):
    log = make(tmp_path)
    log.push(1, numbers(1.5))
    log.flush({"validation/retrieval/i2t_R@1": 25.0}, 1)
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = {value.tag: value.simple_value for event in events(path) for value in event.summary.value}
    assert found["loss"] == 1.5
    assert 25.0 in found.values()


def events(path):
    """TFRecord: length, its checksum, the event, its checksum."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        event = Event()
        event.ParseFromString(content[at + 12 : at + 12 + size])
        yield event
        at += 16 + size
