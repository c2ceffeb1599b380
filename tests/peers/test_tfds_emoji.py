"""The emoji pairs as a data set of tensorflow-datasets. Needs requirements-tfds.txt."""

import sys

import pytest

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import emoji, tfds_emoji
from bacl_jax.data.tfds_source import TfdsRows
from bacl_jax.errors import DataError


def test_the_pairs_are_those_of_the_source(tmp_path):
    config = DataConfig(kind="emoji")
    folder = tfds_emoji.prepare(config, tmp_path)
    assert folder == tmp_path / "emoji_pairs" / "1.0.0"
    rows, _ = emoji.read_rows(emoji.data_folder()[0], config.vendors, config.language)
    splits = emoji.split_rows(rows, config)
    for split in ("train", "validation", "test"):
        expected = sorted((row.caption, row.code, row.content) for row, its in zip(rows, splits, strict=True) if its == split)
        found = TfdsRows(str(folder), split, key_feature="code")
        assert sorted((*row.captions, row.key, row.image) for row in found) == expected
    assert tfds_emoji.prepare(config, tmp_path) == folder


def test_what_cannot_be_prepared(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"data.vendors = \('Nobody',\)"):
        tfds_emoji.prepare(DataConfig(kind="emoji", vendors=("Nobody",)), tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match="this needs tensorflow-datasets") as caught:
        tfds_emoji.prepare(DataConfig(kind="emoji"), tmp_path)
    assert caught.value.kind == "missing"
