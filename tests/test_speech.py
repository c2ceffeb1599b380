"""Synthetic speech: the emoji pairs as a folder that data.kind = "clips" reads."""

import csv

import numpy as np
import pytest
import small_pairs
import soundfile

from bacl_jax import data
from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.config_media import ClipsConfig
from bacl_jax.data import speech


@pytest.fixture(scope="module")
def speaker():
    return speech.Speaker()


def test_what_is_said_is_heard_and_voices_differ(speaker):
    short, long = speaker.say("cat", "en-us+f1", 165), speaker.say("a cat on a very long red sofa", "en-us+f1", 165)
    assert 0.2 < len(short) / speaker.rate < len(long) / speaker.rate < 6
    assert np.abs(long).max() > 3000
    assert not np.array_equal(short, speaker.say("cat", "en-us+m3", 165))
    with pytest.raises(ConfigError, match="no voice 'xx'"):
        speaker.say("cat", "xx", 165)


def test_a_folder_of_pairs_that_clips_reads(tmp_path, monkeypatch, speaker):
    monkeypatch.setattr(speech, "Speaker", lambda: speaker)
    splits = ["train"] * 16 + ["validation"] * 4 + ["test"] * 4
    path = small_pairs.squares(tmp_path, lambda number: splits[number])
    dataset = data.load(DataConfig(kind="manifest", path=str(path), split_column="split"))
    assert speech.write(dataset, "en", tmp_path / "spoken") == 24
    with (tmp_path / "spoken" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["speech"].partition("+")[0] for row in rows} == {"synthetic: eSpeak NG, en-us"}
    assert len({row["speech"] for row in rows}) > 3
    assert all(soundfile.info(tmp_path / "spoken" / row["audio"]).duration > 0.2 for row in rows)
    clips = ClipsConfig(image="{image}", audio="{audio}")
    read = data.load(
        DataConfig(kind="clips", path=str(tmp_path / "spoken/pairs.csv"), anchors=("image", "audio"), clips=clips, split_column="split")
    )
    assert {name: len(split.source) for name, split in read.splits.items()} == {"validation": 4, "test": 4}
    assert {*read.captions} == {*dataset.captions}
    np.testing.assert_array_equal(read.train[3].image, dataset.train[3].image)


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    with pytest.raises(ConfigError, match="is there already"):
        speech.check(tmp_path)
