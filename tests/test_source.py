import hashlib

import numpy as np
import pytest

from bacl_jax.data.source import ArraySource, DataError, assemble, hash_ids, normalise


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


def _assemble(splits):
    images = [np.full((2, 2, 3), i, np.uint8) for i in range(len(splits))]
    captions = [f"caption {i // 2}" for i in range(len(splits))]

    def make(rows):
        return ArraySource([images[i] for i in rows], [captions[i] for i in rows], [str(i) for i in rows])

    return assemble(name="x", description="x", make_source=make, row_captions=captions, row_splits=splits, skipped={"bad": 3})


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
