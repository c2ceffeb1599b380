"""Captions with words left out, swapped, shuffled, replaced or mistyped, as the same draws would have it anywhere.

A caption's words are what spaces part; at `rate`, each of them is hit with that chance. The draws depend on kind, seed and the caption
alone, not on the rate: what is hit at one rate is hit at every higher one. Nothing is left without a word.
"""

import string
import zlib
from collections.abc import Callable, Sequence

import numpy as np

Words = list[str]


def corrupted(kind: str, captions: Sequence[str], rate: float, seed: int) -> list[str]:
    """The captions, corrupted; what `replace` puts in are words of theirs, all equally likely."""
    known = sorted({word for caption in captions for word in caption.split()})
    found = []
    for caption in captions:
        random = np.random.default_rng([seed, zlib.crc32(kind.encode()), zlib.crc32(caption.encode())])
        words = caption.split()
        hit = random.random(len(words)) < rate
        found.append(" ".join(KINDS[kind](words, hit, random, known)))
    return found


def _delete(words: Words, hit: np.ndarray, random: np.random.Generator, known: Words) -> Words:
    """Leaves the words that are hit out, but for one where all are."""
    return [word for word, gone in zip(words, hit, strict=True) if not gone] or [words[random.integers(len(words))]]


def _swap(words: Words, hit: np.ndarray, random: np.random.Generator, known: Words) -> Words:
    """A word that is hit changes places with the next one; neither is swapped again."""
    words, place = list(words), 0
    while place + 1 < len(words):
        if hit[place]:
            words[place], words[place + 1] = words[place + 1], words[place]
        place += 2 if hit[place] else 1
    return words


def _shuffle(words: Words, hit: np.ndarray, random: np.random.Generator, known: Words) -> Words:
    """The words that are hit come in a random order, in the places of these words."""
    words, places = list(words), np.flatnonzero(hit)
    for place, word in zip(places, [words[place] for place in random.permutation(places)], strict=True):
        words[place] = word
    return words


def _replace(words: Words, hit: np.ndarray, random: np.random.Generator, known: Words) -> Words:
    """For each word that is hit, another known one."""
    others = random.integers(max(1, len(known) - 1), size=len(words))
    return [_other(word, int(which), known) if gone else word for word, which, gone in zip(words, others, hit, strict=True)]


def _other(word: str, which: int, known: Words) -> str:
    """One of the known words but `word`, by its number."""
    if len(known) < 2:
        return word
    return known[which] if known[which] != word else known[-1]


def _typo(words: Words, hit: np.ndarray, random: np.random.Generator, known: Words) -> Words:
    """One typing error in each word that is hit: a letter left out, doubled, wrong (a to z), or swapped with the next one."""
    draws = random.random((len(words), 3))
    return [_mistyped(word, *draw) if gone else word for word, draw, gone in zip(words, draws, hit, strict=True)]


def _mistyped(word: str, where: float, how: float, what: float) -> str:
    """where, how, what: draws in [0, 1)."""
    place = int(where * len(word))
    before, letter, after = word[:place], word[place], word[place + 1 :]
    others = [other for other in string.ascii_lowercase if other != letter]
    ways = [before + letter * 2 + after, before + others[int(what * len(others))] + after]
    if len(word) > 1:
        ways.append(before + after)
        ways.append(before + after[0] + letter + after[1:] if after else before[:-1] + letter + before[-1])
    return ways[int(how * len(ways))]


KINDS: dict[str, Callable[[Words, np.ndarray, np.random.Generator, Words], Words]] = {
    "delete": _delete,
    "swap": _swap,
    "shuffle": _shuffle,
    "replace": _replace,
    "typo": _typo,
}
