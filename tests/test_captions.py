import dataclasses
import time

import pytest

from bacl_jax.config import DataConfig
from bacl_jax.data import stream
from bacl_jax.data.captions import clean
from bacl_jax.errors import DataError


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("a plain caption", "a plain caption"),
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("<b>bold</b> <br/>words", "bold words"),
        ("&lt;p&gt;a house&lt;/p&gt;", "a house"),
        ("one <!-- hidden --> two", "one two"),
        ("3 < 4 and 5 > 2", "3 < 4 and 5 > 2"),
        ("I <3 cats", "I <3 cats"),
        ("see https://example.com/a?b=c now", "see now"),
        ("WWW.example.com", ""),
        ("a cafÃ©", "a café"),
        ("bell\x07 and\x00 null", "bell and null"),
        ("Grüße aus 東京", "Grüße aus 東京"),
    ],
)
def test_what_is_not_language_goes(caption, cleaned):
    assert clean(caption) == cleaned


@pytest.mark.parametrize(
    ("part", "end", "cleaned"),
    [
        ("<!--", "", "<!--" * 40_000),
        ("<!--", " <b>--> a cat", "a cat"),
        ("-->", " <!-- a <b>cat", "-->" * 40_000 + " <!-- a cat"),
        ("<a ", "", "<a " * 39_999 + "<a"),
        ("&amp;lt;!--", "", "<!--" * 40_000),
        ("http://", "", ""),
    ],
)
def test_a_hostile_caption_takes_no_longer_than_another_of_its_length(part, end, cleaned):
    start = time.perf_counter()
    assert clean(part * 40_000 + end) == cleaned
    assert time.perf_counter() - start < 3  # a search from each part to the end took 18 seconds


def test_captions_are_cleaned_where_it_is_asked_for():
    record = stream.Record(b"", ("A <b>Cat</b>", "http://x.example"), "k")
    assert stream.captions_of(record, DataConfig()) == ["a <b>cat</b>", "http://x.example"]
    config = dataclasses.replace(DataConfig(), clean_captions=True)
    assert stream.captions_of(record, config) == ["a cat"]
    with pytest.raises(DataError, match="the caption is empty") as caught:
        stream.captions_of(stream.Record(b"", ("<br>",), "k", "a.tar"), config)
    assert (caught.value.kind, caught.value.shard) == ("empty_caption", "a.tar")
