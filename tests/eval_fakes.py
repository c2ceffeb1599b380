"""A trainer, a tokenizer and a data set small enough to know every score of, for the tests of bacl_jax.eval."""

import dataclasses

import numpy as np

from bacl_jax.config import Config, DataConfig
from bacl_jax.config_eval import EvalConfig
from bacl_jax.types import Features

CONFIG = Config(data=DataConfig(image_size=32), eval=EvalConfig(batch_size=16, chunk=8))


@dataclasses.dataclass(frozen=True)
class Example:
    image: np.ndarray
    caption: str
    anchor_key: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows number `first` and up; every pixel of an image is the number of its row."""

    captions: tuple[str, ...]
    keys: tuple[str, ...]
    first: int = 0
    painted: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, row):
        plain = np.full((32, 32, 3), self.first + row, np.uint8)
        return Example(self.painted.get(row, plain), self.captions[row], self.keys[row])


@dataclasses.dataclass(frozen=True)
class Split:
    source: Source
    caption: np.ndarray


@dataclasses.dataclass(frozen=True)
class HalfTrue:
    table: dict[int, list[tuple[int, int, str]]]

    def neighbours(self, caption):
        return self.table.get(caption, [])


@dataclasses.dataclass(frozen=True)
class DataSet:
    train: Source
    train_caption: np.ndarray
    splits: dict[str, Split]
    captions: tuple[str, ...]
    half_true: HalfTrue = HalfTrue({})
    name: str = "fake"


class Tokenizer:
    """The caption "caption 7" becomes BOS, 4 + 7, EOS, padding."""

    unk_id = 3

    def encode(self, captions):
        ids = np.zeros((len(captions), 6), np.int32)
        ids[:, 0], ids[:, 2] = 1, 2
        ids[:, 1] = [4 + int(caption.split()[1]) for caption in captions]
        return ids, ids > 0

    def too_long(self, captions):
        return 0


class Trainer:
    """Looks its answers up: params["z"][row painted into the image], params["w"][caption number]."""

    grid = (2, 2)

    def __init__(self):
        self.encoded_images = 0

    def encode_image(self, params, images):
        assert images.shape == (16, 32, 32, 3), images.shape
        self.encoded_images += len(images)
        pooled = params["z"][images[:, 0, 0, 0]]
        return Features(pooled=pooled, tokens=pooled[:, None].repeat(4, 1))

    def encode_text(self, params, ids, mask):
        assert ids.shape[0] == 16, ids.shape
        pooled = params["w"][ids[:, 1] - 4]
        return Features(pooled=pooled, tokens=pooled[:, None].repeat(6, 1), mask=mask)


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def dataset(own, train=(), keys=None, total=None, half_true=None):
    """A data set whose test split pairs row r with caption own[r]; training rows follow the split's."""
    total = total or 1 + max([*own, *train])
    captions = tuple(f"caption {i}" for i in range(total))
    keys = keys or [f"Goog/{row}" for row in range(len(own))]
    split = Split(Source(tuple(captions[i] for i in own), tuple(keys)), np.asarray(own))
    rest = Source(tuple(captions[i] for i in train), tuple(f"Twtr/{row}" for row in range(len(train))), first=len(own))
    return DataSet(rest, np.asarray(train, np.int64), {"test": split}, captions, HalfTrue(half_true or {}))
