import numpy as np

from bacl_jax.config import DataConfig
from bacl_jax.data import synthetic


def test_pure_and_held_out_words_are_known():
    a, b = (synthetic.load(DataConfig(), copies=2) for _ in range(2))
    assert len(a.train) == 2 * (256 - 32)
    assert len(a.captions) == 256
    for i in range(0, len(a.train), 37):
        np.testing.assert_array_equal(a.train[i].image, b.train[i].image)
    known = {word for i in range(len(a.train)) for word in a.train[i].caption.split()}
    for split in a.splits.values():
        assert len(split.source) == 32
        assert {word for row in split.caption for word in a.captions[row].split()} <= known
    assert len(a.half_true) == 256 * (1 + 7 + 3 + 3) // 2


def test_pictures_tell_captions_apart():
    data = synthetic.load(DataConfig())
    pictures = {data.train[i].image.tobytes() for i in range(len(data.train))}
    assert len(pictures) == len(data.train)
