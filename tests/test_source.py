import hashlib

import numpy as np
import pytest

from bacl_jax.config import ConfigError
from bacl_jax.data.source import ArraySource, assemble, hash_ids, normalise
from bacl_jax.errors import DataError


def test_normalise_makes_equal_what_reads_equal():
    assert normalise("  Two\u00a0 Dogs\n") == normalise("two dogs") == "two dogs"
    assert normalise("cafe\u0301") == normalise("CAF\u00c9")


def test_hash_ids_are_blake2b_and_depend_on_the_key_alone():
    ids = hash_ids(["a", "b", "a"])
    assert ids.shape == (3, 2)
    assert ids.dtype == np.uint32
    assert int.from_bytes(hashlib.blake2b(b"a", digest_size=8).digest(), "little") == int(ids[0, 0]) + (int(ids[0, 1]) << 32)
    np.testing.assert_array_equal(ids[0], ids[2])
    assert (ids[0] != ids[1]).any()
    assert hash_ids([]).shape == (0, 2)


def _assemble(splits, **options):
    images = [np.full((2, 2, 3), i, np.uint8) for i in range(len(splits))]
    captions = [f"caption {i // 2}" for i in range(len(splits))]

    def make(rows):
        return ArraySource([images[i] for i in rows], [captions[i] for i in rows], [str(i) for i in rows])

    return assemble(name="x", description="x", make_source=make, row_captions=captions, row_splits=splits, skipped={"bad": 3}, **options)


def test_assemble_keeps_rows_and_captions_together():
    data = _assemble(["train", "test", "train", "train"])
    assert [data.train[i].anchor_key for i in range(3)] == ["0", "2", "3"]
    for source, caption in [(data.train, data.train_caption), *((split.source, split.caption) for split in data.splits.values())]:
        assert [source[i].caption for i in range(len(source))] == [data.captions[i] for i in caption]
    assert data.captions == ("caption 0", "caption 1")
    assert len(data.splits["validation"].source) == 0
    assert data.splits["validation"].caption.shape == (0,)


def test_nothing_to_train_on_is_an_error_that_says_what_was_left_out():
    with pytest.raises(DataError, match=r"no row is left for training.*'bad': 3"):
        _assemble(["test", "validation"])


def test_fewer_training_rows_are_among_the_more_and_leave_the_rest_as_it_is():
    splits = ["train", "test", "train", "validation", *["train"] * 30]
    whole, kept = _assemble(splits), {}

    def keys(data):
        return [data.train[i].anchor_key for i in range(len(data.train))]

    for rows in (5, 20, 32):
        data = _assemble(splits, train_rows=rows, seed=1)
        kept[rows] = keys(data)
        assert [data.train[i].caption for i in range(rows)] == [data.captions[i] for i in data.train_caption]
        assert (data.captions, len(data.splits["test"].source), len(kept[rows])) == (whole.captions, 1, rows)
    assert set(kept[5]) < set(kept[20]) < set(kept[32])
    assert kept[32] == keys(whole)
    assert set(kept[5]) != set(keys(_assemble(splits, train_rows=5, seed=2)))
    with pytest.raises(ConfigError, match=r"config.data.train_rows = 33: must be at most 32"):
        _assemble(splits, train_rows=33)
