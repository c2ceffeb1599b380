import logging
import time

import pytest

from bacl_jax.config import DataConfig
from bacl_jax.data.stages import Stages
from bacl_jax.train.bottleneck import Bottleneck


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))


def warnings(caplog, config, spent, *, waited=0.5, stepped=0.5, steps=62):
    """Messages after steps of a second each, in each of which the readers spend what `spent` says."""
    stages = Stages()
    watch = Bottleneck(config, stages)
    with caplog.at_level(logging.WARNING, "bacl_jax"):
        for step in range(1, steps + 1):
            for stage, seconds in spent.items():
                stages._seconds[stage] += seconds
            watch.took(step, waited=waited, stepped=stepped)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("spent", "config", "expected"),
    [
        (
            {"reading": 0.6, "decoding": 0.3, "tokenising": 0.1},
            DataConfig(kind="webdataset", path="shards"),
            "Storage is the bottleneck: the readers spent 60% reading, 30% decoding, 10% tokenising. Move the files to a faster disk, "
            "convert them with launch.index --convert=array_record, or raise data.threads = 2",
        ),
        (
            {"reading": 0.6, "decoding": 0.4},
            DataConfig(kind="webdataset", path="https://host/{0..9}.tar"),
            "Copy the files to a local disk, start anew with data.shuffle=block, or raise data.threads = 2: more requests then run at once",
        ),
        (
            {"reading": 0.6, "decoding": 0.4},
            DataConfig(kind="array_record", path="records"),
            "Move the files to a faster disk, or raise data.threads = 2",
        ),
        (
            {"reading": 0.1, "decoding": 0.9},
            DataConfig(threads=3),
            "the readers spent 10% reading, 90% decoding, 0% tokenising. Raise data.threads = 3: there are 8 cores",
        ),
        (
            {"reading": 0.1, "decoding": 0.9},
            DataConfig(threads=8, image_size=224),
            "All 8 cores are in use: store smaller pictures (448 pixels are enough), or take more hosts",
        ),
        ({"tokenising": 0.9, "decoding": 0.1}, DataConfig(threads=8), "Tokenising is the bottleneck"),
        ({}, DataConfig(), "the readers did nothing meanwhile"),
    ],
)
def test_the_warning_names_the_stage_and_the_remedy(caplog, cores, spent, config, expected):
    (message,) = warnings(caplog, config, spent)
    assert message.startswith("steps 2 to 61 waited for data 50% of their time (30.0 of 60.0 s)")
    assert expected in message


def test_a_short_wait_is_worth_no_word(caplog):
    assert warnings(caplog, DataConfig(), {"decoding": 1.0}, waited=0.09, stepped=0.91) == []


def test_the_first_step_is_passed_over(caplog):
    watch = Bottleneck(DataConfig(), Stages())
    watch.took(1, waited=1000.0, stepped=100.0)
    watch.took(2, waited=0.0, stepped=61.0)
    assert not caplog.records


def test_it_is_said_once_in_a_while(caplog):
    assert len(warnings(caplog, DataConfig(), {"reading": 1.0}, steps=600)) == 1
    caplog.clear()
    assert len(warnings(caplog, DataConfig(), {"reading": 1.0}, steps=1500)) == 3


def test_stages_count_the_time_of_all_threads():
    stages = Stages()
    for _ in range(2):
        with stages.spent("decoding"):
            time.sleep(0.02)
    with pytest.raises(KeyError), stages.spent("reading"):
        raise KeyError
    found = stages.seconds()
    assert found["decoding"] >= 0.04
    assert 0 < found["reading"] < found["decoding"]
    assert found["tokenising"] == 0
