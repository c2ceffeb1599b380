import dataclasses
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import vocabulary
from bacl_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from bacl_jax.errors import DataError

PAD, BOS, EOS, UNK = range(4)
CAPTIONS = ["red circle", "blue circle", "blue square left", "medium-dark skin tone"]
WORD = dataclasses.replace(DataConfig(), context_length=6)
BPE = dataclasses.replace(WORD, tokenizer="bpe", vocab_size=300, context_length=24)
PIECES = dataclasses.replace(WORD, tokenizer="wordpiece", vocab_size=80, context_length=24)
TRAINED = pytest.mark.parametrize("config", [WORD, BPE, PIECES], ids=["word", "bpe", "wordpiece"])


def of_file(path, size, length=8):
    return Tokenizer.read(DataConfig(tokenizer="file", tokenizer_path=str(path), vocab_size=size, context_length=length))


def json_file(folder, change=lambda fields: None):
    """A tokenizer.json such as Hugging Face's: neither cut nor padded."""
    tokenizer = vocabulary.read(vocabularies.wordpiece_file(folder))[0]
    fields = json.loads(tokenizer.to_str())
    change(fields)
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    return str(folder / "tokenizer.json")


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


def test_word_pieces_make_up_words():
    tokenizer = Tokenizer.train(CAPTIONS, PIECES)
    found = tokenizer.tokens(tokenizer.encode(["Red-square, CIRCLED zebra"])[0][0])
    assert found[:2] == ["[BOS]", "red"]
    assert found[2:4] == ["-", "square"]
    assert "".join(found[5:-1]).replace("##", "").startswith("circled[UNK][EOS]")  # no caption has a comma or a z
    assert found[4] == "[UNK]"


@TRAINED
def test_the_special_ids_of_a_trained_vocabulary(config):
    tokenizer = Tokenizer.train(CAPTIONS, config)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (PAD, BOS, EOS)
    assert tuple(tokenizer.tokens(range(4))) == SPECIAL_TOKENS


def test_long_captions_are_cut_and_keep_their_end():
    tokenizer = Tokenizer.train(CAPTIONS, WORD)
    ids, mask = tokenizer.encode(["blue " * 50])
    assert ids[0, -1] == EOS
    assert mask.all()
    assert tokenizer.too_long(["blue " * 50, "blue", "red " * (WORD.context_length - 2), "red " * (WORD.context_length - 1)]) == 2


@TRAINED
def test_saved_and_loaded_is_the_same(config, tmp_path):
    tokenizer = Tokenizer.train(CAPTIONS, config)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    texts = ["red square", "nothing known", "", "[EOS] [PAD]"]
    for a, b in zip(tokenizer.encode(texts), loaded.encode(texts), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (loaded.vocab_size, loaded.context_length) == (tokenizer.vocab_size, config.context_length)


@TRAINED
def test_training_depends_on_the_captions_alone(config, tmp_path):
    for name, captions in (("a", CAPTIONS), ("b", CAPTIONS[::-1])):
        Tokenizer.train(captions, config).save(tmp_path / name)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


@TRAINED
def test_another_process_learns_the_same(config):
    """Each host trains its own; the library's word pieces alone would differ from start to start."""
    r = random.Random(0)
    captions = [" ".join("".join(r.choices("abcdefgh", k=r.randint(1, 6))) for _ in range(5)) for _ in range(300)]
    code = (
        "import json, sys; from bacl_jax.config import DataConfig; from bacl_jax.data.tokenizer import Tokenizer; "
        "given = json.load(sys.stdin); print(json.dumps(Tokenizer.train(given[0], DataConfig(**given[1])).to_json()))"
    )
    config = dataclasses.replace(config, vocab_size=290)
    given_ = json.dumps([captions, {name: getattr(config, name) for name in ("tokenizer", "vocab_size", "context_length")}])
    root, environment = Path(__file__).parents[1], os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], input=given_, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == Tokenizer.train(captions, config).to_json()


@TRAINED
def test_special_tokens_in_a_caption_are_text(config):
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
    many = ["".join(map(chr, range(start, start + 9))) for start in range(0x4E00, 0x4E00 + 900, 9)] + ["common"] * 9
    for size in (6, 40, 300):
        assert Tokenizer.train([*CAPTIONS, *many], dataclasses.replace(PIECES, vocab_size=size)).vocab_size <= size
    with pytest.raises(ConfigError, match=r"data.vocab_size = 100.*at least 260"):
        Tokenizer.train(CAPTIONS, dataclasses.replace(BPE, vocab_size=100))
    with pytest.raises(ConfigError, match=r"data.context_length = 2"):
        Tokenizer.train(CAPTIONS, dataclasses.replace(BPE, context_length=2))


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    for name, content in (("a.json", b"{}"), ("b.json", b"\xff"), ("c.json", b'{"version": "1.0"'), ("d.json", b"[1]")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            Tokenizer.load(tmp_path / name)
    with pytest.raises(DataError, match=r"absent.json"):
        Tokenizer.load(tmp_path / "absent.json")
    with pytest.raises(DataError, match="not cut and padded"):
        Tokenizer.load(json_file(tmp_path))


def test_clips_file(tmp_path):
    tokenizer = of_file(vocabularies.clip_file(tmp_path), vocabularies.CLIP_SIZE)
    ids, mask = tokenizer.encode(["RED blue's", "!", "", "red " * 9, "<|endoftext|>"])
    start, end = vocabularies.CLIP_SIZE - 2, vocabularies.CLIP_SIZE - 1
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (start, end, 0)
    assert tokenizer.tokens(ids[0][mask[0]]) == ["<|startoftext|>", "red</w>", "blue</w>", "'s</w>", "<|endoftext|>"]
    assert ids[0].tolist() == [start, 513, 516, 517, end, 0, 0, 0]
    assert ids[1].tolist() == [start, 256, end, 0, 0, 0, 0, 0]  # "!" that ends a word is 256; 0, within one, also pads
    assert ids[2].tolist() == [start, end, 0, 0, 0, 0, 0, 0]
    assert ids[3].tolist() == [start, *[513] * 6, end]
    assert (ids[4] == end).sum() == 1  # text like any other
    assert mask.sum(1).tolist() == [5, 3, 2, 8, 8]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  A  Red\tCIRCLE \n", "a red circle"),
        ("caf&amp;eacute; &lt;b&gt; AT&T", "café <b> at&t"),
        ("cafÃ©", "café"),
        ("“it’s”", '"it\'s"'),
        ("e\u0301\x07 ﬁne", "é fine"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_texts_for_clips_file_are_cleaned_up(tmp_path, text, clean):
    assert vocabulary.clean_up(text) == clean
    tokenizer = of_file(vocabularies.clip_file(tmp_path), vocabularies.CLIP_SIZE, 40)
    np.testing.assert_array_equal(*(tokenizer.encode([each])[0] for each in (text, clean)))


def test_a_vocab_txt(tmp_path):
    path = vocabularies.wordpiece_file(tmp_path)
    tokenizer = of_file(path, len(vocabularies.PIECES))
    ids, mask = tokenizer.encode(["Café BLUE's square", "[SEP] [MASK]"])
    assert tokenizer.tokens(ids[0]) == ["[CLS]", "cafe", "blue", "'", "s", "squ", "##are", "[SEP]"]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 3, 0)
    assert set(ids[1][mask[1]][1:-1]) == {1}  # unknown, not special
    Path(path).write_bytes(Path(path).read_bytes().replace(b"\n", b"\r\n"))
    np.testing.assert_array_equal(of_file(path, len(vocabularies.PIECES)).encode(["red square"])[0], tokenizer.encode(["red square"])[0])


def test_a_tokenizer_json(tmp_path):
    tokenizer = of_file(json_file(tmp_path), len(vocabularies.PIECES))
    other = of_file(vocabularies.wordpiece_file(tmp_path), len(vocabularies.PIECES))
    texts = ["Café BLUE's square", "red " * 9, ""]
    for a, b in zip(tokenizer.encode(texts), other.encode(texts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_padding_and_cut_of_a_tokenizer_json_become_ours(tmp_path):
    def change(fields):
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(fields))
        tokenizer.enable_padding(direction="left", pad_id=4, pad_token="[MASK]")
        tokenizer.enable_truncation(3, direction="left")
        fields |= json.loads(tokenizer.to_str())

    tokenizer = of_file(json_file(tmp_path, change), len(vocabularies.PIECES))
    assert tokenizer.encode(["red blue s '"])[0].tolist() == [[2, 5, 6, 10, 9, 3, 4, 4]]


@pytest.mark.parametrize("pad", ["[SEP]", {"content": "[SEP]", "special": True}, "[ABSENT]", None])
def test_the_file_beside_a_tokenizer_json_tells_what_pads(tmp_path, pad):
    """A SigLIP tower attends to padding, and the first SigLIP's tokenizer has a <pad> that is not what pads."""
    path = Path(json_file(tmp_path))
    path.with_name("tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
    found = 0 if pad in ("[ABSENT]", None) else 3
    assert of_file(path, len(vocabularies.PIECES)).encode(["red"])[0].tolist() == [[2, 5, 3, *5 * [found]]]
    path.with_name("tokenizer_config.json").write_text("[")
    with pytest.raises(DataError, match=r"tokenizer_config.json beside it holds no JSON object"):
        of_file(path, len(vocabularies.PIECES))


def test_a_tokenizer_json_that_puts_nothing_before_a_text(tmp_path):
    """SigLIP's has an end alone."""
    tokenizer = of_file(json_file(tmp_path, lambda fields: fields["post_processor"]["single"].pop(0)), len(vocabularies.PIECES))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 3)
    assert tokenizer.encode(["red blue s '"])[0].tolist() == [[5, 6, 10, 9, 3, 0, 0, 0]]
    assert tokenizer.encode([""])[1].sum() == 1


def test_ids_with_holes(tmp_path):
    path = json_file(tmp_path, lambda fields: fields["model"]["vocab"].update(cafe=90))
    assert of_file(path, 91).encode(["cafe"])[0].max() == 90
    with pytest.raises(ConfigError, match=r"data.vocab_size = 12: .*tokenizer.json holds 91 tokens; set --config.data.vocab_size=91"):
        of_file(path, 12)


@pytest.mark.parametrize("make", [vocabularies.clip_file, vocabularies.wordpiece_file, json_file])
def test_what_came_from_a_file_is_restored_without_it(tmp_path, make):
    path = Path(make(tmp_path))
    size = vocabularies.CLIP_SIZE if path.suffix == ".gz" else len(vocabularies.PIECES)
    tokenizer, texts = of_file(path, size), ["caf&eacute; Red", "[SEP] blue’s"]
    path.unlink()
    restored = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    np.testing.assert_array_equal(restored.encode(texts)[0], tokenizer.encode(texts)[0])
    assert (restored.bos_id, restored.eos_id, restored.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(vocabularies.clip_text().encode(), mtime=0)[:-9], "a damaged gzip file"),
        (gzip.compress(vocabularies.clip_text().encode(), mtime=0)[:20] + b"\0" * 9, "a damaged gzip file"),
        (b"\x1f\x8b", "a damaged gzip file"),
        (gzip.compress(b"\xff\xfe", mtime=0), "no UTF-8 text"),
        (b"\xff\xfe", "no UTF-8 text"),
        (gzip.compress(b"red\nblue\n", mtime=0), "first line is 'red'"),
        (gzip.compress(vocabularies.clip_text(["r e", "r"]).encode(), mtime=0), "line 3 is 'r'"),
        (gzip.compress(vocabularies.clip_text(["r e", "re d d"]).encode(), mtime=0), "line 3 is 're d d'"),
        (gzip.compress(vocabularies.clip_text(["re d"]).encode(), mtime=0), "line 2 is 're d'"),
        (gzip.compress(vocabularies.clip_text(["r e", "r e"]).encode(), mtime=0), "line 3 is 'r e'"),
        (b"{", "no tokenizer.json"),
        (b'{"model": {"type": "BPE"}, "version": 1}', "no tokenizer.json"),
        (b"", r"\[PAD\], \[UNK\], \[CLS\], \[SEP\] is not among its 1 lines"),
        (b"[PAD]\n[UNK]\n[CLS]\nred\n", r"\[SEP\] is not among its 4 lines"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\nblue\nred\n", "line 7 repeats 'red' of line 5"),
    ],
)
def test_a_damaged_vocabulary_is_told(tmp_path, content, said):
    path = tmp_path / "vocabulary"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"data.tokenizer_path = '{path}': .*{said}"):
        of_file(path, 12)
    path.unlink()
    with pytest.raises(DataError, match=rf"data.tokenizer_path = '{path}': the file cannot be read \(No such file.*vocab.txt of WordPiece"):
        of_file(path, 12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fields: fields.update(post_processor=None), "no single token after a text"),
        (lambda fields: fields["post_processor"]["single"].pop(), "no single token after a text"),
        (lambda fields: fields["model"].update(unk_token="[none]"), r"what is unknown, '\[none\]', is not in its vocabulary"),
        (lambda fields: fields["post_processor"]["special_tokens"].pop("[SEP]"), "."),
        (
            lambda fields: fields.update(model={"type": "BPE", "dropout": 0.5, "vocab": {"[CLS]": 2, "[SEP]": 3}, "merges": []}),
            "left out at random; set its model's dropout to null, it is 0.5",
        ),
    ],
)
def test_a_tokenizer_json_that_does_not_fit_is_told(tmp_path, change, said):
    with pytest.raises(DataError, match=rf"data.tokenizer_path = '.*tokenizer.json': .*{said}"):
        of_file(json_file(tmp_path, change), len(vocabularies.PIECES))


def test_too_few_merges_are_told_by_the_size(tmp_path):
    with pytest.raises(ConfigError, match=rf"data.vocab_size = 49408: .* holds {vocabularies.CLIP_SIZE} tokens.*fetch the file again"):
        of_file(vocabularies.clip_file(tmp_path), 49_408)
