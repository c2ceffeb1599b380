"""1,000 random texts get the ids that open_clip and Hugging Face give them. Needs open_clip_torch (without torch), transformers, regex."""

import gzip
import importlib.util
import random
import sys
import types
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizerFast, CLIPTokenizerFast

from bacl_jax.config import DataConfig
from bacl_jax.data import vocabulary
from bacl_jax.data.tokenizer import Tokenizer

COUNT, LENGTH, CLIP_SIZE = 1000, 77, 49_408
OPEN_CLIP = Path(importlib.util.find_spec("open_clip").origin).parent
FILE = OPEN_CLIP / "bpe_simple_vocab_16e6.txt.gz"
KNOWN = [  # characters that the tables of every library know: those of Unicode 3.2
    chr(i) for i in range(0x30000) if unicodedata.ucd_3_2_0.category(chr(i)) not in ("Cn", "Cs", "Co")
]
PIECES = (
    *(
        "a photo of a red circle",
        "Ein Käfer über Größe",
        "ΟΔΥΣΣΕΥΣ ὈΔΥΣΣΕΎΣ",
        "Съешь ещё этих булок",
        "İstanbul'da ışık",
        "naïve CAFÉ",
        "Ǆungla",
    ),
    *(
        "قطة على سجادة",
        "חתול על שטיח",
        "चित्र में बिल्ली",
        "รูปแมว",
        "猫の写真",
        "一只猫坐在垫子上",
        "고양이 사진",
        "გამარჯობა",
        "አማርኛ",
        "e\u0301te\u0301",
        "ﷺ",
    ),
    *("👩\u200d👩\u200d👧\u200d👦", "👍🏽", "🇩🇪", "☺️", "❤️\u200d🔥", "1️⃣", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "ｆｕｌｌ　ｗｉｄｔｈ", "ﬁne ﬂow", "½ ² ⅷ ①"),
    *("&amp;", "&amp;lt;b&amp;gt;", "&eacute;", "&EACUTE;", "&#128049;", "&#x1F431", "&nbsp;", "AT&T", "&lt;br/&gt;", "&unknown;", "&#0;"),
    *("it's", "I'LL", "they've", "she'd", "we're", "I'm", "don't", "rock'n'roll", "'S", "'ſ", "‘tis", "it’s", "“quoted”", "dogs'"),
    *("3.14159", "2024-02-29", "0", "1234567890" * 4, "10€", "£5", "C++", "#tag", "@user", "...", "?!", "--", "—", "•", "_", "<s>"),
    *(
        "\x00",
        "\x07",
        "\x1b[31mred\x1b[0m",
        "\t",
        "\n",
        "\r\n",
        "\x85",
        "\u2028",
        "\u3000",
        "\xa0",
        "\u200b",
        "\ufeff",
        "\xad",
        "\u202e",
        " ",
        "   ",
    ),
    *("cafÃ©", "â€œmojibakeâ€\x9d", "schÃ¶n", "Ã ", "l’Ã©tÃ©", "\ufffd", "\U0010fffd"),
    *("x" * 120, "Donaudampfschifffahrtsgesellschaft" * 5, "https://example.org/a_b?c=d&e=f%20g", "word " * 90),
)


def texts():
    """Every piece alone, pieces put together with and without spaces, and characters of all scripts at random; 1,000 in all."""
    r = random.Random(0)
    made = ["", *PIECES]
    while len(made) < COUNT:
        parts = r.choices([*PIECES, *("".join(r.choices(KNOWN, k=r.randint(1, 12))) for _ in range(40))], k=r.randint(1, 8))
        made.append(r.choice(["", " ", " ", "  "]).join(parts))
    return made


TEXTS = texts()


def read(path, size, length=LENGTH):
    return Tokenizer.read(DataConfig(tokenizer="file", tokenizer_path=str(path), vocab_size=size, context_length=length))


def theirs(tokenizer, given, length=LENGTH):
    """Rows of Hugging Face's ids, cut and without padding."""
    return tokenizer(list(given), truncation=True, max_length=length)["input_ids"]


def assert_rows(tokenizer, given, rows):
    ids, mask = tokenizer.encode(given)
    for text, own, taken, row in zip(given, ids, mask, rows, strict=True):
        assert own[taken].tolist() == list(row), repr(text)
        assert (own[~taken] == tokenizer.pad_id).all()


@pytest.fixture
def open_clip(monkeypatch):
    """open_clip's own SimpleTokenizer, its module alone; numpy stands in for torch, which only holds the finished rows."""
    stand_in = types.ModuleType("torch")
    stand_in.__dict__.update(tensor=np.array, long=np.int64, LongTensor=np.ndarray, Tensor=np.ndarray)
    stand_in.__dict__.update(zeros=lambda *shape, dtype: np.zeros(shape, dtype))
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")  # their module sets it for the whole process
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", OPEN_CLIP / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer(str(FILE))


@pytest.fixture
def hf_clip():
    """Hugging Face's CLIP tokenizer with the same vocabulary."""
    model = vocabulary.read(str(FILE))[0]
    merges = gzip.decompress(FILE.read_bytes()).decode().split("\n")[1 : CLIP_SIZE - 512 - 2 + 1]
    return CLIPTokenizerFast(vocab=model.get_vocab(), merges=[tuple(line.split()) for line in merges])


@pytest.mark.parametrize("length", [8, LENGTH])
def test_whole_rows_are_those_of_open_clip(open_clip, length):
    assert len(TEXTS) == COUNT
    ours = read(FILE, CLIP_SIZE, length)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (49406, 49407, 0, open_clip.vocab_size)
    for tokenizer in (ours, Tokenizer.from_json(ours.to_json())):
        ids, mask = tokenizer.encode(TEXTS)
        expected = open_clip(TEXTS, length)
        assert [text for text, a, b in zip(TEXTS, ids, expected, strict=True) if (a != b).any()] == []
        np.testing.assert_array_equal(mask.sum(1), (expected == 49407).argmax(1) + 1)
    assert ours.too_long(TEXTS) == sum(len(open_clip.encode(text)) > length - 2 for text in TEXTS) > 0


@pytest.mark.parametrize("length", [8, LENGTH])
def test_a_tokenizer_json_gives_the_ids_of_hugging_face(hf_clip, tmp_path, length):
    hf_clip.save_pretrained(tmp_path)
    ours = read(tmp_path / "tokenizer.json", CLIP_SIZE, length)
    assert (ours.bos_id, ours.eos_id) == (49406, 49407)
    assert_rows(ours, TEXTS, theirs(hf_clip, TEXTS, length))


def test_clips_file_gives_the_ids_of_hugging_face_for_texts_that_are_clean(hf_clip):
    clean = [vocabulary.clean_up(text) for text in TEXTS if "ſ" not in text and "\u0345" not in text]  # where case is ignored these differ
    clean = [text for text in clean if vocabulary.clean_up(text) == text]  # an entity within entities is not
    assert len(clean) > 0.9 * COUNT
    assert_rows(read(FILE, CLIP_SIZE), clean, theirs(hf_clip, clean))


@pytest.mark.parametrize("length", [8, LENGTH])
def test_wordpiece_gives_the_ids_of_bert(tmp_path, length):
    trained = Tokenizer.train(TEXTS[: COUNT // 2], DataConfig(tokenizer="wordpiece", vocab_size=20_000))
    named = {"[BOS]": "[CLS]", "[EOS]": "[SEP]"}
    pieces = [named.get(token, token) for token in trained.tokens(range(trained.vocab_size))]
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in [*pieces, "[MASK]"]), encoding="utf-8")
    bert = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    bert.save_pretrained(tmp_path)
    expected = theirs(bert, TEXTS, length)
    assert sum(row.count(bert.unk_token_id) for row in expected) < 0.25 * sum(map(len, expected))
    for name in ("vocab.txt", "tokenizer.json"):
        ours = read(tmp_path / name, len(pieces) + 1, length)
        assert (ours.pad_id, ours.bos_id, ours.eos_id) == (bert.pad_token_id, bert.cls_token_id, bert.sep_token_id)
        assert_rows(ours, TEXTS, expected)
