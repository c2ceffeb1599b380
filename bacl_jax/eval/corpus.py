"""All pairs of a source, read once and encoded: what an audit looks at.

A picture that occurs in several rows is encoded once, and so is a caption. Dimension legend: P pairs, A pictures with different
anchor keys, C captions that read differently, D embedding width, S pixels a side.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64

from bacl_jax.config import Config, ConfigError
from bacl_jax.data import transforms
from bacl_jax.data.source import Example, Source
from bacl_jax.errors import DataError
from bacl_jax.eval.embeddings import finite, progress

T = TypeVar("T")
THUMBNAIL = 12  # pixels a side: few enough that saving a picture anew changes none of them much
MOST_UNKNOWN = 0.5  # share of tokens; a tokenizer that knows fewer was made for other captions


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A row that could not be used, and why."""

    row: int
    kind: str
    shard: str
    error: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Pairs as (picture, caption): `image` and `caption` point into `keys` and `captions`, `row` into the source.

    shown:      of each picture, the first row that holds it.
    digest:     of each picture's pixels as they were read: equal pictures have equal ones.
    thumbnails: each picture as the model sees it, at 12 pixels a side.
    z, w:       embeddings of pictures and captions, L2-normalised.
    Memory: 8 D + 500 bytes a pair and the texts.
    """

    row: Int[np.ndarray, " P"]
    image: Int[np.ndarray, " P"]
    caption: Int[np.ndarray, " P"]
    keys: list[str]
    shards: list[str]
    captions: list[str]
    shown: Int[np.ndarray, " A"]
    digest: UInt64[np.ndarray, " A"]
    thumbnails: UInt8[np.ndarray, "A t t 3"]
    z: Float[np.ndarray, "A D"]
    w: Float[np.ndarray, "C D"]
    unreadable: list[Unreadable]

    def __len__(self) -> int:
        return len(self.row)


def read(trainer: Any, params: Any, tokenizer: Any, source: Source, config: Config, *, show_progress: bool = False) -> Corpus:
    """Every row of `source` with each of its captions, in the order of the rows.

    A row that cannot be read is listed in `unreadable` under data.on_error = "skip"; else its DataError is raised. DataError also where
    fewer than two pictures or captions are left; ConfigError where the tokenizer knows less than half of the captions' tokens. Pictures are
    read by data.threads threads, eval.batch_size at a time.
    """
    size, pixels = config.eval.batch_size, config.data.image_size
    images, captions = _Images(len(source)), _Captions()
    pairs: list[tuple[int, int, int]] = []
    unreadable: list[Unreadable] = []
    waiting: list[np.ndarray] = []

    def encode() -> None:
        batch = np.zeros((size, pixels, pixels, 3), np.uint8)
        batch[: len(waiting)] = waiting
        images.add(np.asarray(trainer.encode_image(params, batch).pooled, np.float32)[: len(waiting)], batch[: len(waiting)])
        waiting.clear()

    starts = range(0, len(source), size)
    for block in progress(
        blocks(lambda row: source[row].decoded(), len(source), size, config.data.threads),
        "reading and encoding pictures",
        len(starts),
        show_progress,
    ):
        for row, found in block:
            if isinstance(found, DataError):
                if config.data.on_error == "raise":
                    raise found
                unreadable.append(Unreadable(row, found.kind, found.shard, str(found)))
                continue
            image, new = images.number(found, row)
            pairs += [(row, image, captions.number(text)) for text in dict.fromkeys((found.caption, *found.others))]
            if new:
                waiting.append(transforms.crop(found.picture, pixels, resample=config.data.resample))
                if len(waiting) == size:
                    encode()
    if len(images.keys) < 2 or len(captions.texts) < 2:
        rows = f"{len(source):,} rows, {len(unreadable):,} of them unreadable"
        found = f"{len(images.keys)} pictures and {len(captions.texts)} captions in {rows}"
        raise DataError(f"{found}: an audit compares, and needs at least two of each", kind="empty")
    if waiting:
        encode()
    check_known(tokenizer, captions.texts)
    row, image, caption = np.unique(np.asarray(pairs, np.int64), axis=0).T
    return Corpus(
        row=row,
        image=image,
        caption=caption,
        keys=images.keys,
        shards=images.shards,
        captions=captions.texts,
        shown=np.asarray(images.shown, np.int64),
        digest=np.asarray(images.digests, np.uint64),
        thumbnails=images.thumbnails[: len(images.keys)],
        z=finite(images.z[: len(images.keys)], "picture"),
        w=encode_captions(trainer, params, tokenizer, captions.texts, config, show_progress=show_progress),
        unreadable=unreadable,
    )


def unknown_tokens(tokenizer: Any, texts: list[str]) -> tuple[int, int]:
    """(tokens that the tokenizer does not know, all tokens) of texts, without each one's ends: CLIP's stands for unknown ones as well."""
    ids, mask = tokenizer.encode(texts)
    inside = ids[:, 1:-1][mask[:, 2:]]
    return int(np.sum(inside == tokenizer.unk_id)), len(inside)


def check_known(tokenizer: Any, captions: list[str]) -> None:
    """ConfigError where the tokenizer does not know most of the captions: such a checkpoint belongs to other data. Asks 10,000 of them."""
    unknown, tokens = unknown_tokens(tokenizer, captions[:: -(-len(captions) // 10_000)])
    share = unknown / max(1, tokens)
    if share > MOST_UNKNOWN:
        raise ConfigError(
            f"the checkpoint's tokenizer does not know {100 * share:.0f} % of the captions' tokens: it was trained on other captions; "
            "audit these data with a checkpoint that was trained on such (data.tokenizer = bpe knows any text)"
        )


def encode_captions(
    trainer: Any, params: Any, tokenizer: Any, captions: list[str], config: Config, *, show_progress: bool = False
) -> Float[np.ndarray, "C D"]:
    """Embeddings of captions, tokenised and encoded eval.batch_size at a time."""
    size, parts = config.eval.batch_size, []
    starts = range(0, len(captions), size)
    for start in progress(starts, "encoding captions", len(starts), show_progress):
        texts = captions[start : start + size]
        ids, mask = tokenizer.encode(texts + texts[:1] * (size - len(texts)))
        parts.append(np.asarray(trainer.encode_text(params, ids, mask).pooled, np.float32)[: len(texts)])
    return finite(np.concatenate(parts), "caption")


def blocks(read: Callable[[int], T], count: int, size: int, threads: int) -> Iterator[list[tuple[int, T | DataError]]]:
    """(place, read(place)) for the places 0 ... count - 1, `size` at a time, read by threads; a DataError stands for what raised it."""

    def one(place: int) -> tuple[int, T | DataError]:
        try:
            return place, read(place)
        except DataError as error:
            return place, error

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, size):
            yield list(pool.map(one, range(start, min(start + size, count))))


class _Images:
    """Pictures with different keys, numbered as they come."""

    def __init__(self, capacity: int):
        self._number: dict[str, int] = {}
        self._capacity, self._encoded = capacity, 0
        self.keys: list[str] = []
        self.shards: list[str] = []
        self.shown: list[int] = []
        self.digests: list[int] = []
        self.thumbnails = np.zeros((capacity, THUMBNAIL, THUMBNAIL, 3), np.uint8)
        self.z = np.zeros((0, 0), np.float32)

    def number(self, example: Example, row: int) -> tuple[int, bool]:
        """Number of the example's picture, and whether it is a new one."""
        number = self._number.setdefault(example.anchor_key, len(self.keys))
        if new := number == len(self.keys):
            self.keys.append(example.anchor_key)
            self.shards.append(example.shard)
            self.shown.append(row)
            content = np.ascontiguousarray(example.image)
            digest = hashlib.blake2b(str(content.shape).encode() + content.tobytes(), digest_size=8).digest()
            self.digests.append(int.from_bytes(digest, "little"))
        return number, new

    def add(self, z: Float[np.ndarray, "b D"], pixels: UInt8[np.ndarray, "b S S 3"]) -> None:
        """Embeddings and pixels of the next new pictures."""
        if not self.z.size:
            self.z = np.zeros((self._capacity, z.shape[1]), np.float32)
        rows = slice(self._encoded, self._encoded + len(z))
        self.z[rows] = z
        self.thumbnails[rows] = [transforms.crop(picture, THUMBNAIL) for picture in pixels]
        self._encoded += len(z)


class _Captions:
    """Captions that read differently, numbered as they come."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        number = self._number.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number
