"""Several data sets as one: shares of a batch, hold-outs, names in keys and errors, statistics."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from bacl_jax import data
from bacl_jax.config import Config, ConfigError, SourceConfig, check_resumable, flatten, from_config_dict, to_dict
from bacl_jax.data import Tokenizer, batches
from bacl_jax.data.faults import Faults
from bacl_jax.data.source import hash_ids
from bacl_jax.errors import DataError

SHARED = "a square"


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Two manifests of 40 and 12 pairs whose image paths and some captions are the same."""
    paths = []
    for name, rows in (("many", 40), ("few", 12)):
        folder = tmp_path_factory.mktemp(name)
        lines = ["image,caption,split"]
        for row in range(rows):
            Image.new("RGB", (8, 8), (row, 0, 0)).save(folder / f"{row}.png")
            split = "validation" if row in (3, 4) else "test" if row == 5 else "train"
            lines.append(f"{row}.png,{SHARED if row in (3, 7) else f'{name} {row}'},{split}")
        (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
        paths.append(str(folder / "pairs.csv"))
    return paths


def config(manifests, **changes):
    sources = [
        {"kind": "manifest", "path": manifests[0], "name": "many", "weight": 3.0, "split_column": "split"},
        {"kind": "manifest", "path": manifests[1], "split_column": "split"},
    ]
    settings = {"kind": "mixture", "sources": sources, "image_size": 8, "threads": 1, "prefetch": 1}
    return from_config_dict({"data": settings | changes, "train": {"batch_size": 16}})


def test_hold_outs_are_those_of_all(manifests):
    found = data.load(config(manifests).data)
    assert [len(found.splits[split].source) for split in ("validation", "test")] == [4, 2]
    validation = found.splits["validation"]
    for row, caption in enumerate(validation.caption):
        assert validation.source[row].caption == found.captions[caption]
    assert found.captions == tuple(sorted({SHARED, "many 4", "few 4", "many 5", "few 5"}))
    assert [(part.name, part.rows, part.weight) for part in found.parts()] == [("many", 37, 3.0), ("manifest1", 9, 1.0)]
    assert "75%" in found.description
    assert "25%" in found.description


def test_pictures_of_two_sources_are_two(manifests):
    found = data.load(config(manifests).data)
    assert len({found.train[row].anchor_key for row in range(46)}) == 46
    assert found.train[0].anchor_key == "many/0.png"
    assert found.train[37].anchor_key == "manifest1/0.png"


def test_batches_have_the_shares_and_go_on_anywhere(manifests):
    settings = config(manifests)
    found = data.load(settings.data)
    tokenizer = Tokenizer.train(found.training_captions(), settings.data)
    run = list(itertools.islice(batches(found, tokenizer, settings, start_step=0), 20))
    for _, batch in run:
        assert (batch.index < 37).sum() == 12
        for row, key in zip(batch.index.tolist(), batch.anchor_id, strict=True):
            np.testing.assert_array_equal(hash_ids([found.train[row].anchor_key])[0], key)
    again = list(itertools.islice(batches(found, tokenizer, settings, start_step=13), 7))
    halves = [list(itertools.islice(batches(found, tokenizer, settings, start_step=13, shard=((host,), 2)), 7)) for host in (0, 1)]
    for (_, batch), (_, expected), *parts in zip(again, run[13:], *halves, strict=True):
        np.testing.assert_array_equal(batch.index, expected.index)
        np.testing.assert_array_equal(np.concatenate([part.index for _, part in parts]), expected.index)


def test_a_tokenizer_hears_the_sources_in_their_shares(manifests, monkeypatch):
    monkeypatch.setattr(data.mixture, "_SAMPLE", 12)
    captions = data.load(config(manifests).data).training_captions()
    assert len(captions) == 12
    assert captions.count(SHARED) <= 2  # of either
    assert 8 <= sum(caption.startswith("many") for caption in captions) <= 9


def test_bad_rows_are_counted_by_source(manifests, tmp_path):
    settings = config(manifests, on_error="skip")
    found = data.load(settings.data)

    class Failing:
        """The second source, whose rows 2 and 3 cannot be read."""

        def __len__(self):
            return len(found.members[1].train)

        def __getitem__(self, row):
            if row in (2, 3):
                raise DataError(f"row {row} is gone", kind="missing", shard="x.tar")
            return found.members[1].train[row]

    members = [found.members[0], dataclasses.replace(found.members[1], train=Failing())]
    mixed = data.mixture.join(members, found.weights)
    with pytest.raises(DataError, match=r"^manifest1: row 2 is gone") as caught:
        mixed.train[37 + 2]
    assert (caught.value.kind, caught.value.shard) == ("missing", "x.tar")
    faults = Faults(1.0, tmp_path / "data_errors.jsonl")
    tokenizer = Tokenizer.train(mixed.training_captions(), settings.data)
    for _, batch in itertools.islice(batches(mixed, tokenizer, settings, start_step=0, faults=faults), 9):
        assert (batch.index < 37).sum() == 12
        assert not {39, 40} & set(batch.index.tolist())
    lines = [json.loads(line) for line in (tmp_path / "data_errors.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} == {"manifest1"}
    for step in (3, 9):
        before = sum(line["step"] < step for line in lines)
        assert before > 0
        assert faults.before(step) == {"manifest1": before}
    assert Faults(1.0, tmp_path / "data_errors.jsonl").before(9) == {"manifest1": before}


def test_a_source_that_cannot_be_read_is_named(manifests):
    with pytest.raises(DataError, match=r"^manifest1: .*nothing\.csv"):
        data.load(config([manifests[0], "nothing.csv"]).data)


def test_emoji_and_a_manifest_mix(manifests):
    settings = from_config_dict(
        {"data": {"kind": "mixture", "sources": ({"kind": "emoji", "weight": 9.0}, {"kind": "manifest", "path": manifests[1]})}}
    )
    found = data.load(settings.data)
    assert [part.name for part in found.parts()] == ["emoji0", "manifest1"]
    assert found.parts()[0].rows == 5412
    assert len(found.splits["test"].source) == 798


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, r"config.data.sources = \(\): must name at least one source"),
        ({"kind": "emoji"}, "config.data.sources, 2 sources: must be empty where data.kind is emoji"),
        ({"sources": 3}, "config.data.sources = 3: must be a tuple, each entry a group of kind, path, weight"),
        ({"sources": [{"kind": "mixture"}]}, r"config.data.sources\[0\].kind = 'mixture': must be one of emoji, manifest"),
        ({"sources": [{"kind": "parquet"}]}, r"config.data.sources\[0\].path = None: .*set it in --config.data.sources="),
        ({"sources": [{"paht": "x"}]}, r"config.data.sources\[0\].paht is unknown: did you mean config.data.sources\[0\].path"),
        ({"sources": [{"path": "x", "weight": 0.0}]}, r"config.data.sources\[0\].weight = 0.0: must be"),
        ({"sources": [{"path": "x", "name": "a"}, {"path": "y", "name": "a"}]}, "a is the name of another source, too"),
        ({"sources": [{"path": "x", "name": "parquet1"}, {"kind": "parquet", "path": "y"}]}, "parquet1 is the name of another source, too"),
        ({"sources": [{"path": "x", "name": "a/b"}]}, "must be a name without /"),
        ({"sources": ["webdataset"]}, r"must be a group of fields; as in config.data.sources=\({...},\)"),
    ],
)
def test_settings_that_cannot_be(manifests, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(manifests, **changes)


def test_paths_may_change_on_resume_and_weights_may_not(manifests):
    settings = config(manifests)
    assert from_config_dict(json.loads(json.dumps(to_dict(settings)))) == settings
    assert flatten(settings)["data.sources[1].path"] == manifests[1]

    def changed(**fields):
        sources = (settings.data.sources[0], dataclasses.replace(settings.data.sources[1], **fields))
        return dataclasses.replace(settings, data=dataclasses.replace(settings.data, sources=sources))

    check_resumable(settings, changed(path="elsewhere.csv"))
    with pytest.raises(ConfigError, match=r"config.data.sources\[1\].weight was 1.0, is now 2.0"):
        check_resumable(settings, changed(weight=2.0))
    with pytest.raises(ConfigError, match=r"data.sources"):
        check_resumable(settings, Config())
    assert SourceConfig().kind == "webdataset"
