"""Trackers: TensorBoard's files; a service that answers late, fails for a while or never comes, and what it is owed after a resume."""

import dataclasses
import json
import threading
import time

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import SessionLog
from test_metrics import events

from bacl_jax.config import Config, ConfigError, from_config_dict
from bacl_jax.train import trackers
from bacl_jax.train.services import Record
from bacl_jax.train.trackers import Behind, Board, Trackers, check


class Shelf:
    """A service that keeps what it is given, on the disk of those who run it; `down`: it raises."""

    settles = 0.0

    def __init__(self):
        self.steps, self.runs, self.down, self.closed = [], [], threading.Event(), None

    def open(self, run, remember):
        self._answer()
        self.runs.append(run)
        remember(run or "the id")
        return max(self.steps, default=0)

    def write(self, record):
        self._answer()
        self.steps.append(record.step)

    def close(self, step):
        self.closed = step

    def _answer(self):
        if self.down.is_set():
            raise ConnectionError("no route to host")


def given(behind, *steps):
    for step in steps:
        behind.write(Record(step=step, numbers={"loss": 1.0}))


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(trackers, "PAUSE", 0.001)
    monkeypatch.setattr(trackers, "LEAVE", 5.0)


def test_a_service_gets_each_step_once_also_over_a_resume(tmp_path, caplog):
    shelf = Shelf()
    first = Behind("shelf", shelf, tmp_path)
    given(first, 1, 2, 3)
    first.close()
    assert json.loads((tmp_path / "trackers" / "shelf.json").read_text()) == {"run": "the id", "step": 3}
    again = Behind("shelf", shelf, tmp_path)  # from the checkpoint of step 1
    given(again, 2, 3, 4)
    again.close()
    assert shelf.steps == [1, 2, 3, 4]
    assert shelf.runs == [None, "the id"]
    assert shelf.closed == 4
    assert not caplog.records


def test_what_a_service_may_lose_is_given_again(tmp_path):
    """It keeps what it is given in memory for a while, and cannot tell what it has."""
    shelf = Shelf()
    shelf.settles = 0.2
    shelf.open = lambda run, remember: remember("the id")
    note = tmp_path / "trackers" / "shelf.json"
    behind = Behind("shelf", shelf, tmp_path)
    given(behind, 1, 2)
    while shelf.steps != [1, 2]:
        time.sleep(0.001)
    assert json.loads(note.read_text())["step"] == 0
    while json.loads(note.read_text())["step"] != 2:
        time.sleep(0.01)
    given(behind, 3)
    while shelf.steps != [1, 2, 3]:
        time.sleep(0.001)
    assert json.loads(note.read_text())["step"] == 2  # a kill here loses step 3
    behind.close()
    assert json.loads(note.read_text())["step"] == 3


def test_what_the_service_has_counts_more_than_what_was_remembered(tmp_path):
    """A kill between the two leaves the file behind."""
    shelf = Shelf()
    shelf.steps = [1, 2, 3, 4]
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "shelf.json").write_text('{"run": "the id", "step": 3}')
    again = Behind("shelf", shelf, tmp_path)
    given(again, 4, 5)
    again.close()
    assert shelf.steps == [1, 2, 3, 4, 5]


def test_what_a_service_lacks_before_the_checkpoint_comes_from_the_log(tmp_path):
    """The process before was killed with records in hand, or had no such tracker."""
    lines = [{"step": step, "samples_seen": 8 * step, "loss": None if step == 3 else 1.0} for step in range(1, 8)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "shelf.json").write_text('{"run": "the id", "step": 2}')
    shelf = Shelf()
    shelf.steps = [1, 2]
    again = Behind("shelf", shelf, tmp_path, start_step=5)
    given(again, 6)
    again.close()
    assert shelf.steps == [1, 2, 3, 4, 5, 6]
    new = Shelf()
    Behind("new", new, tmp_path, start_step=5).close()
    assert new.steps == [1, 2, 3, 4, 5]
    assert [record.numbers for record in trackers.owed(tmp_path / "metrics.jsonl", 1, 3)] == [{"loss": 1.0}, {}]


def test_a_service_that_is_gone_for_a_while_gets_all(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(trackers, "TRIES", 10**6)
    shelf = Shelf()
    behind = Behind("shelf", shelf, tmp_path)
    shelf.down.set()
    given(behind, 1, 2)
    while not caplog.records:
        time.sleep(0.01)
    shelf.down.clear()
    while shelf.steps != [1, 2]:
        time.sleep(0.01)
    behind.close()
    (warning,) = caplog.messages
    assert warning.startswith("shelf does not answer; the run goes on, and tries again (")
    assert warning.endswith("records behind): ConnectionError: no route to host")


def test_a_service_that_never_comes_costs_nothing_and_is_counted(tmp_path, caplog):
    shelf = Shelf()
    shelf.down.set()
    behind = Behind("shelf", shelf, tmp_path)
    start = time.monotonic()
    given(behind, *range(1, 301))
    assert time.monotonic() - start < 0.5
    behind.close()
    assert caplog.messages[-1] == "shelf was not given 300 of 300 records; metrics.jsonl has all numbers"
    assert len(caplog.messages) == 2
    assert not (tmp_path / "trackers").exists()


def test_a_service_that_hangs_holds_up_no_step_and_no_end(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(trackers, "LEAVE", 0.1)
    monkeypatch.setattr(trackers, "WAITING", 10)
    shelf, never = Shelf(), threading.Event()
    shelf.write = lambda record: never.wait(60) and None
    behind = Behind("shelf", shelf, tmp_path)
    start = time.monotonic()
    given(behind, *range(1, 101))
    behind.close()
    assert time.monotonic() - start < 2
    never.set()
    assert caplog.messages == ["shelf was not given 100 of 100 records; metrics.jsonl has all numbers"]


def test_tensorboard_gets_numbers_pictures_and_histograms_and_forgets_what_is_done_again(tmp_path):
    for start, steps in ((0, (1, 2, 3)), (1, (2, 3, 4))):
        board = Board(tmp_path, start)
        for step in steps:
            picture, values = np.full((4, 6, 3), step, np.uint8), np.linspace(-1, 1, 50)
            board.write(
                Record(step=step, seconds=time.time(), numbers={"loss": 0.5}, pictures={"seen": picture}, histograms={"score": values})
            )
        board.close()
        time.sleep(1.1)  # a file's name has the second in it
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    kinds = {value.tag: value.WhichOneof("value") for event in events(second) for value in event.summary.value}
    assert kinds == {"loss": "simple_value", "seen": "image", "score": "histo"}
    assert [event.step for event in events(second) if event.session_log.status == SessionLog.START] == [2]
    assert [event.step for event in events(first) if event.session_log.status == SessionLog.START] == [1]


def watched(**watch):
    return from_config_dict({"watch": watch})


def test_a_package_that_is_not_there_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    said = (
        r"config.watch.trackers = \('tensorboard', 'wandb'\): the package wandb is not installed; pip install -r "
        r"requirements-trackers.txt, or leave it out with --config.watch.trackers=\"\('tensorboard',\)\""
    )
    with pytest.raises(ConfigError, match=said):
        check(watched(trackers=("tensorboard", "wandb")))


def test_a_server_that_is_named_nowhere_is_refused(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = watched(trackers=("mlflow",))
    with pytest.raises(ConfigError, match=r"config.watch.mlflow_uri = None: must name MLflow's server .* MLFLOW_TRACKING_URI"):
        check(config)
    check(dataclasses.replace(config, watch=dataclasses.replace(config.watch, mlflow_uri="http://127.0.0.1:5000")))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check(config)


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ConfigError, match=r"config.watch.trackers.*tensorboard, wandb, mlflow"):
        watched(trackers=("comet",))


def test_a_run_may_have_no_tracker(tmp_path):
    none = Trackers(watched(trackers=()), tmp_path)
    none.write(Record(step=1))
    none.close()
    assert not list(tmp_path.iterdir())
    Trackers(Config(), tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
