"""A model so small that a step compiles in seconds, and batches of random pairs for it."""

import dataclasses

import jax
import numpy as np

from bacl_jax.config import Config, DataConfig, ModelConfig, TextConfig, TrainConfig, VisionConfig
from bacl_jax.config_objective import BNSConfig, CLAConfig, ObjectiveConfig, UnpairedConfig
from bacl_jax.mesh import AXES
from bacl_jax.types import Batch, Tokens

VOCABULARY = 40


def one_device() -> jax.sharding.Mesh:
    """A mesh of the first device alone: an eighth of the compile time where sharding is not the question."""
    return jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES)


def config(**objective) -> Config:
    """BACL with every channel that `objective` does not switch off; 16 pairs a step."""
    return Config(
        data=DataConfig(image_size=16, context_length=8, threads=1, prefetch=2),
        model=ModelConfig(
            embed_dim=16, image=VisionConfig(width=8, depth=1, heads=2, patch=4), text=TextConfig(width=16, depth=1, heads=2)
        ),
        objective=dataclasses.replace(
            ObjectiveConfig(
                bank_size=48,
                bns=BNSConfig(enabled=True, k=4, pool=12, drawn_share=0.25, partner_share=0.25, partner_k=3, partner_every=2, hidden=8),
                cla=CLAConfig(enabled=True, width=16, heads=2),
            ),
            **objective,
        ),
        train=TrainConfig(steps=20, batch_size=16),
    )


def plain(**objective) -> Config:
    """InfoNCE alone: compiles in a few seconds."""
    return config(bns=BNSConfig(), cla=CLAConfig(), **objective)


def unpaired(**objective) -> Config:
    """InfoNCE on rows half of which lack a caption or a picture."""
    settings = UnpairedConfig(enabled=True, start=0.0, k=3, confidence=0.0, mutual=0)
    plain = config(bns=BNSConfig(), cla=CLAConfig(), unpaired=settings, **objective)
    data = dataclasses.replace(plain.data, kind="manifest", path="pairs.csv", unpaired_share=0.5, truth_column="truth")
    return dataclasses.replace(plain, data=data)


def batch(seed: int = 0, size: int = 16, captions: int = 10, paired: int | None = None) -> Batch:
    """Random pictures; captions BOS words EOS that repeat, so that a row has several positives. paired: so many rows are pairs."""
    r = np.random.default_rng(seed)
    caption = r.integers(0, captions, size)
    ids, mask = np.zeros((size, 8), np.int32), np.zeros((size, 8), bool)
    for row, c in enumerate(caption):
        words = [1, 4 + c, 4 + (c * 7) % 11, 20, 2]
        ids[row, : len(words)], mask[row, : len(words)] = words, True
    present = np.ones(size, bool)
    return Batch(
        inputs={
            "image": Tokens(values=r.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8)),
            "text": Tokens(values=ids, mask=mask),
        },
        present={"image": present, "text": present},
        caption_id=np.stack([caption, caption], 1).astype(np.uint32),
        anchor_id=np.stack([np.arange(size) + seed * size] * 2, 1).astype(np.uint32),
        index=(np.arange(size) + seed * size).astype(np.int32) % 64,
        paired=None if paired is None else np.arange(size) < paired,
        truth=None if paired is None else np.stack([caption, caption], 1).astype(np.uint32),
    )
