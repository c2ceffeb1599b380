"""Captions from the web, cleaned: an opt-in (data.clean_captions) before they are normalised (`source.normalise`)."""

import html
import re

import ftfy

from bacl_jax.data.source import normalise

_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_TAG_OR_COMMENT = re.compile(rf"{_TAG.pattern}|<!--.*?-->", re.DOTALL)
_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)


def clean(caption: str) -> str:
    """The caption without what is not language.

    In this order: text decoded wrongly is mended and control characters go (ftfy), HTML entities become their characters, also those that
    were escaped twice (both as open_clip's `basic_clean`), HTML tags and comments go, URLs go, single spaces stay. Time is linear in the
    caption's length.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(caption)))
    before, end, after = text.rpartition("-->")  # after the last end of a comment, one that begins would be looked for in vain
    return " ".join(_URL.sub(" ", _TAG_OR_COMMENT.sub(" ", before + end) + _TAG.sub(" ", after)).split())


def normal(caption: str, *, cleaned: bool = False) -> str:
    """The caption in its normal form, cleaned before where asked for; "" where there is nothing to be read in it."""
    caption = normalise(clean(caption) if cleaned else caption)
    return caption if any(letter.isprintable() and letter != " " for letter in caption) else ""
