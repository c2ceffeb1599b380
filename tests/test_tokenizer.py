import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data.source import DataError
from bacl_jax.data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer

CAPTIONS = ["red circle", "blue circle", "blue square left", "medium-dark skin tone"]
WORD = dataclasses.replace(DataConfig(), context_length=6)
BPE = dataclasses.replace(WORD, tokenizer="bpe", vocab_size=300, context_length=24)


def test_word_tokens_are_whitespace_words():
    tokenizer = Tokenizer.train(CAPTIONS, WORD)
    ids, mask = tokenizer.encode(["Blue  circle", "medium-dark unseen tone"])
    assert ids.shape == mask.shape == (2, 6)
    assert ids.dtype == np.int32
    assert tokenizer.tokens(ids[0]) == ["[BOS]", "blue", "circle", "[EOS]", "[PAD]", "[PAD]"]
    assert ids[1, 2] == UNK
    assert ids[0, 0] == BOS
    np.testing.assert_array_equal(mask, ids != PAD)
    assert tokenizer.vocab_size == 4 + len({word for caption in CAPTIONS for word in caption.split()})


def test_long_captions_are_cut_and_keep_their_end():
    tokenizer = Tokenizer.train(CAPTIONS, WORD)
    ids, mask = tokenizer.encode(["blue " * 50])
    assert ids[0, -1] == EOS
    assert mask.all()
    assert tokenizer.too_long(["blue " * 50, "blue", "red " * (WORD.context_length - 2), "red " * (WORD.context_length - 1)]) == 2


@pytest.mark.parametrize("config", [WORD, BPE], ids=["word", "bpe"])
def test_saved_and_loaded_is_the_same(config, tmp_path):
    tokenizer = Tokenizer.train(CAPTIONS, config)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    texts = ["red square", "nothing known", "", "[EOS] [PAD]"]
    for a, b in zip(tokenizer.encode(texts), loaded.encode(texts), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (loaded.vocab_size, loaded.context_length) == (tokenizer.vocab_size, config.context_length)


@pytest.mark.parametrize("config", [WORD, BPE], ids=["word", "bpe"])
def test_training_depends_on_the_captions_alone(config, tmp_path):
    for name, captions in (("a", CAPTIONS), ("b", CAPTIONS[::-1])):
        Tokenizer.train(captions, config).save(tmp_path / name)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_special_tokens_in_a_caption_are_text():
    for config in (WORD, BPE):
        ids, mask = Tokenizer.train(CAPTIONS, config).encode(["[PAD] [EOS]"])
        inner = ids[0][mask[0]][1:-1]
        assert not np.isin(inner, [PAD, BOS, EOS]).any()


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_text_encodes(texts):
    ids, mask = _BPE.encode(texts)
    assert ids.shape == mask.shape == (len(texts), 24)
    assert (ids != UNK).all()  # bytes are never unknown
    assert ((ids == PAD) == ~mask).all()


_BPE = Tokenizer.train(CAPTIONS, BPE)


def test_vocabulary_is_bounded():
    assert Tokenizer.train(CAPTIONS, dataclasses.replace(WORD, vocab_size=6)).vocab_size == 6
    with pytest.raises(ConfigError, match=r"data.vocab_size = 100.*at least 260"):
        Tokenizer.train(CAPTIONS, dataclasses.replace(BPE, vocab_size=100))


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    for name, content in (("a.json", b"{}"), ("b.json", b"\xff"), ("c.json", b'{"version": "1.0"')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            Tokenizer.load(tmp_path / name)
    with pytest.raises(DataError, match=r"absent.json"):
        Tokenizer.load(tmp_path / "absent.json")
