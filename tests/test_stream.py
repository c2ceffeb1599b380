"""Rows that are read as they are needed: splits without a table, captions, and what becomes of rows that cannot be read."""

import dataclasses
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from bacl_jax.config import Config, ConfigError
from bacl_jax.data import Tokenizer, batches, order, stream, transforms
from bacl_jax.data.faults import Faults
from bacl_jax.data.loader import BatchBuilder
from bacl_jax.data.source import hash_ids
from bacl_jax.errors import DataError

BASE = Config()
CONFIG = dataclasses.replace(
    BASE,
    train=dataclasses.replace(BASE.train, batch_size=24),
    data=dataclasses.replace(BASE.data, image_size=8, context_length=8, validation_rows=20, test_rows=30, on_error="skip"),
)


class Memory:
    """Records of one colour each; `bad` rows cannot be read, and every third has a second caption."""

    def __init__(self, size=300, bad=(), empty=()):
        self.size, self.bad, self.empty = size, set(bad), set(empty)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        shard = f"{index // 100}.tar"
        if index in self.bad:
            raise DataError(f"{shard}: row {index} is gone", kind="vanished", shard=shard)
        file = io.BytesIO()
        Image.new("RGB", (20, 16), (index % 256, 0, 0)).save(file, "PNG")
        captions = (f"Number  {index}",) if index % 3 else (f"Number {index}", f"also {index}")
        return stream.Record(file.getvalue(), ("",) if index in self.empty else captions, f"{shard}/{index}", shard)


def dataset(records, **changes):
    return stream.assemble(records, dataclasses.replace(CONFIG.data, **changes), name="memory")


def first(count, data, config=CONFIG, start=0, faults=None, shard=((0,), 1)):
    tokenizer = Tokenizer.train([f"number {i} also" for i in range(300)], config.data)
    return list(itertools.islice(batches(data, tokenizer, config, start_step=start, faults=faults, shard=shard), count))


def test_splits_hold_every_row_once():
    data = dataset(Memory())
    parts = [data.train, *(split.source for split in data.splits.values())]
    keys = [{part[i].anchor_key for i in range(len(part))} for part in parts]
    assert [len(part) for part in parts] == [len(found) for found in keys] == [250, 20, 30]
    assert len(set().union(*keys)) == 300
    for split in data.splits.values():
        assert [data.captions[i] for i in split.caption] == [split.source[i].caption for i in range(len(split.source))]


def test_hold_outs_are_drawn_by_their_own_seed():
    def held(**changes):
        source = dataset(Memory(), **changes).splits["test"].source
        return [source[i].anchor_key for i in range(len(source))]

    assert held() == held()
    assert held() != held(holdout_seed=1)
    with pytest.raises(ConfigError, match="300 rows in all"):
        dataset(Memory(), test_rows=290)


def test_fewer_training_rows_are_among_the_more_and_none_is_held_out():
    def keys(source):
        return [source[i].anchor_key for i in range(len(source))]

    few, more, whole = (dataset(Memory(), train_rows=rows) for rows in (20, 60, None))
    assert set(keys(few.train)) < set(keys(more.train)) < set(keys(whole.train))
    assert (len(few.train), len(more.train)) == (20, 60)
    assert all(keys(few.splits[split].source) == keys(whole.splits[split].source) for split in few.splits)
    with pytest.raises(ConfigError, match=r"config.data.train_rows = 251: must be at most 250"):
        dataset(Memory(), train_rows=251)


def test_without_hold_outs_rows_are_in_their_order():
    data = dataset(Memory(), validation_rows=0, test_rows=0)
    assert [data.train[i].anchor_key for i in (0, 1, 299)] == ["0.tar/0", "0.tar/1", "2.tar/299"]
    assert data.captions == ()


def test_a_batch_holds_one_of_the_captions_of_each_row():
    data, picked = dataset(Memory(), validation_rows=0, test_rows=0), []
    for _, batch in first(40, data):
        examples = [data.train[int(row)] for row in batch.index]
        for example, got in zip(examples, batch.caption_id, strict=True):
            allowed = hash_ids([example.caption, *example.others])
            at = np.flatnonzero((allowed == got).all(axis=1))
            assert len(at) == 1
            picked.extend([int(at[0])] if example.others else [])
    assert 0.4 < np.mean(picked) < 0.6


def test_bad_rows_are_replaced_alike_after_a_restart_and_on_any_number_of_hosts():
    data = dataset(Memory(bad=range(0, 300, 7), empty=[1]), validation_rows=0, test_rows=0, max_error_share=1.0)
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, max_error_share=1.0))
    whole = first(12, data, config)
    for step, batch in first(7, data, config, start=5):
        np.testing.assert_array_equal(batch.index, whole[step][1].index)
        np.testing.assert_array_equal(batch.inputs["image"].values, whole[step][1].inputs["image"].values)
    halves = [first(12, data, config, shard=((which,), 2)) for which in range(2)]
    for (_, batch), *parts in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(batch.index, np.concatenate([part.index for _, part in parts]))
        assert not set(batch.index.tolist()) & {1, *range(0, 300, 7)}


def test_what_was_left_out_is_written_down_once(tmp_path):
    path, bad = tmp_path / "data_errors.jsonl", set(range(0, 300, 7))
    data = dataset(Memory(bad=bad), validation_rows=0, test_rows=0)

    def read(steps, faults):
        tokenizer = Tokenizer.train(data.training_captions(), CONFIG.data)
        build = BatchBuilder(
            data, tokenizer, CONFIG, partners=None, partner_share=lambda step: 0.0, shard=((0,), 1), faults=faults
        )  # without read-ahead
        for step in steps:
            build(step)

    read(range(9), Faults(1.0, path))
    path.write_bytes(path.read_bytes() + b'{"step": 3, "posi')  # killed while it wrote
    again = Faults(1.0, path)
    read(range(4, 13), again)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({(line["step"], line["position"], line["row"]) for line in lines}) == len(lines) == sum(again.counts.values())
    assert {line["row"] for line in lines} <= bad
    epoch = [line for line in lines if line["step"] < 13 and line["row"] in order.batch_rows(0, line["step"], 24, 300)]
    assert bad <= {line["row"] for line in epoch}  # an epoch is 12 steps and a half
    assert set(again.counts) == {("vanished", f"{i}.tar") for i in range(3)}


def test_too_many_bad_rows_end_the_run():
    data = dataset(Memory(bad=range(100, 200)), validation_rows=0, test_rows=0)
    with pytest.raises(DataError, match=r"data\.max_error_share = 0\.05.*'vanished' in 1\.tar"):
        first(200, data, faults=Faults(0.05))


def test_raise_stops_at_the_first_bad_row():
    data = dataset(Memory(bad=[17]), validation_rows=0, test_rows=0)
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, on_error="raise"))
    with pytest.raises(DataError, match="row 17 is gone"):
        first(13, data, config)


def test_a_hold_out_that_cannot_be_read():
    skipped = []
    data = stream.assemble(Memory(bad=range(300)), CONFIG.data, name="memory", on_skip=skipped.append)
    assert [len(split.source) for split in data.splits.values()] == [0, 0]
    assert data.skipped == {"vanished": 50}
    assert len(skipped) == 50
    with pytest.raises(DataError, match="is gone"):
        dataset(Memory(bad=range(300)), on_error="raise")


def test_a_picture_or_a_caption_that_is_none():
    records = Memory(empty=[3])
    data = dataset(records, validation_rows=0, test_rows=0)
    with pytest.raises(DataError, match="caption is empty") as caught:
        data.train[3]
    assert (caught.value.kind, caught.value.shard) == ("empty_caption", "0.tar")
    broken = stream.RecordSource([stream.Record(b"no picture", ("a",), "0.tar/9", "0.tar")], CONFIG.data, np.arange(1))
    with pytest.raises(DataError, match=r"0\.tar/9: not a readable image") as caught:
        broken[0].decoded()
    assert (caught.value.kind, caught.value.shard) == ("unreadable", "0.tar")


def test_a_picture_of_more_pixels_than_allowed_is_refused():
    records = Memory()  # of 20 x 16 pixels
    for look in (lambda example: example.image, lambda example: example.picture.crop(8, transforms.square, "bilinear")):
        look(dataset(records, max_pixels=320, validation_rows=0, test_rows=0).train[7])
        with pytest.raises(DataError, match=r"0\.tar/7: .*20 x 16 = 320 pixels, data.max_pixels is 319") as caught:
            look(dataset(records, max_pixels=319, validation_rows=0, test_rows=0).train[7])
        assert (caught.value.kind, caught.value.shard) == ("bomb", "0.tar")


def test_a_tokenizer_is_trained_on_what_can_be_read():
    data = dataset(Memory(bad=[2]), validation_rows=0, test_rows=0)
    found = data.training_captions()
    assert "number 2" not in found
    assert {"number 3", "also 3"} <= set(found)
    assert len(found) == 399


def test_a_tokenizer_hears_rows_that_lie_evenly(monkeypatch):
    monkeypatch.setattr(stream, "_SAMPLE", 4)
    data = dataset(Memory(bad=[199]), validation_rows=0, test_rows=0)
    assert data.training_captions() == ["number 0", "also 0", "number 99", "also 99", "number 299"]


def test_what_recovers_after_a_restart_stays_replaced_at_its_places(tmp_path):
    """A remote that could not be reached for a while: the steps that are read again have the rows that they had."""
    path = tmp_path / "data_errors.jsonl"
    failing, whole = (dataset(Memory(bad=bad), validation_rows=0, test_rows=0) for bad in (range(0, 300, 7), ()))
    before = first(6, failing, faults=Faults(1.0, path))
    after = first(4, whole, start=2, faults=Faults(1.0, path, first_step=2))
    for (step, batch), (_, again) in zip(before[2:], after, strict=True):
        np.testing.assert_array_equal(batch.index, again.index, err_msg=str(step))
    assert any((first(4, whole, start=2)[i][1].index != after[i][1].index).any() for i in range(4))
