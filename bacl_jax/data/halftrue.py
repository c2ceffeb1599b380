"""Half-true captions: equal in length, different in exactly one whitespace word.

"woman running dark skin tone" and "man running dark skin tone" describe each other's picture but for one word: the negatives
that a model finds ambiguous, and what the `halftrue` task measures.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal, get_args

Attribute = Literal["skin tone", "gender/age", "hair", "direction", "colour", "number", "other"]
ATTRIBUTES: tuple[str, ...] = get_args(Attribute)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VOCABULARY = {
    "gender/age": _words(
        "man woman person men women people boy girl boys girls child baby adult older old male female king queen prince princess father "
        "mother grandfather grandmother mr. mrs. mx mermaid merman merperson man’s woman’s"
    ),
    "hair": _words("bald blond beard curly haircut hair red-haired white-haired"),
    "direction": _words(
        "left right up down left-facing right-facing up-left up-right down-left down-right left-right up-down upwards downwards leftwards "
        "rightwards clockwise counterclockwise north south east west northeast northwest southeast southwest upper lower"
    ),
    "colour": _words("red orange yellow green blue purple brown black white grey gray pink cyan magenta light-blue"),
    "number": _words("one two three four five six seven eight nine ten eleven twelve 1st 2nd 3rd first second third single double"),
}
_SIDE = re.compile(r"\b(left|right|(north|south)?-?(east|west)|(counter|anti)?-?clockwise)(wards?|most|ern)?\b", re.IGNORECASE)
_SKIN_TONES = _words("light medium-light medium medium-dark dark")
_HAIR_WORDS = _VOCABULARY["hair"] | {"red", "white"}
_DIGITS = re.compile(r"\d+([:.]\d+)?")


def attribute_of(words: list[str], other: list[str], position: int) -> Attribute:
    """What the word at `position` tells apart, from English word lists; both words must belong to one list, else "other".

    Skin tones count only where "skin" follows, and red, white, curly and bald are hair where "hair" follows.
    Captions in other languages are all "other".
    """
    pair = {words[position], other[position]}
    following = words[position + 1] if position + 1 < len(words) else ""
    if pair <= _SKIN_TONES and following == "skin":
        return "skin tone"
    if following == "hair" and pair <= _HAIR_WORDS:
        return "hair"
    if all(_DIGITS.fullmatch(word) for word in pair):
        return "number"
    for attribute in ("gender/age", "hair", "direction", "colour", "number"):
        if pair <= _VOCABULARY[attribute]:
            return attribute
    return "other"


def names_side(caption: str) -> bool:
    """Whether a caption says something that a mirrored picture would make wrong: left, right, east, west, clockwise. English alone."""
    return _SIDE.search(caption) is not None


class HalfTrueIndex:
    """The half-true neighbours of each caption.

    captions: distinct and normalised. A caption of a single word has no neighbours: nothing of it would be true.
    The table is built on first use, in time and memory linear in the number of words; pairs are never listed beforehand.
    """

    def __init__(self, captions: tuple[str, ...]):
        self._captions = captions

    @functools.cached_property
    def _siblings(self) -> dict[tuple[int, str, str], list[int]]:
        """(position, the words before, the words after) -> captions that share all but the word at that position."""
        table: dict[tuple[int, str, str], list[int]] = defaultdict(list)
        for i, caption in enumerate(self._captions):
            for _, key in _keys(caption):
                table[key].append(i)
        return {key: members for key, members in table.items() if len(members) > 1}

    def neighbours(self, caption: int) -> list[tuple[int, int, Attribute]]:
        """(neighbour, position of the differing word, attribute) for each half-true neighbour, by position and then by index."""
        words = self._captions[caption].split()
        return [
            (j, position, attribute_of(words, self._captions[j].split(), position))
            for position, key in _keys(self._captions[caption])
            for j in self._siblings.get(key, ())
            if j != caption
        ]

    def pairs(self) -> Iterator[tuple[int, int, int, Attribute]]:
        """Each unordered pair once, as (i, j, position, attribute) with i < j."""
        for i in range(len(self._captions)):
            for j, position, attribute in self.neighbours(i):
                if i < j:
                    yield i, j, position, attribute

    def __len__(self) -> int:
        """Number of unordered pairs."""
        return sum(len(members) * (len(members) - 1) // 2 for members in self._siblings.values())


def _keys(caption: str) -> Iterator[tuple[int, tuple[int, str, str]]]:
    words = caption.split()
    if len(words) < 2:
        return
    for position in range(len(words)):
        yield position, (position, " ".join(words[:position]), " ".join(words[position + 1 :]))
