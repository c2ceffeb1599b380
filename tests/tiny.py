"""A model so small that a step compiles in seconds, and batches of random pairs for it."""

import dataclasses

import jax
import numpy as np

from bacl_jax.config import Config, DataConfig, TrainConfig
from bacl_jax.config_media import AudioDataConfig, VideoDataConfig
from bacl_jax.config_model import AudioConfig, ModelConfig, TextConfig, VideoConfig, VisionConfig
from bacl_jax.config_objective import BNSConfig, CLAConfig, ObjectiveConfig, UnpairedConfig
from bacl_jax.mesh import AXES
from bacl_jax.types import Batch, Tokens

VOCABULARY = 40
FLAGS = (  # of a model and a run as small, for the doors
    *(f"--config.model.{name}=8" for name in ("embed_dim", "image.width", "text.width")),
    *(f"--config.model.{name}.depth=1" for name in ("image", "text")),
    *(f"--config.model.{name}.mlp_ratio=1" for name in ("image", "text")),
    "--config.model.text.heads=2",
    "--config.data.image_size=8",
    "--config.data.vocab_size=600",
    "--config.objective.bank_size=16",
    "--config.objective.bns.k=2",
    "--config.objective.bns.pool=4",
    "--config.objective.bns.partner_k=2",
    "--config.objective.bns.hidden=4",
    "--config.objective.cla.width=8",
    "--config.objective.cla.heads=2",
    "--config.optim.warmup_steps=1",
    "--config.train.steps=2",
    "--config.train.batch_size=4",
    "--config.eval.batch_size=4",
)


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


def media(*anchors: str, **objective) -> Config:
    """BACL without partners on these anchors; half a second of sound at 800 Hz, three frames of a clip."""
    base = config(**objective)
    bns = dataclasses.replace(base.objective.bns, partner_share=0.0)
    settings = dataclasses.replace(base.objective, bns=bns, weights=objective.get("weights", (1.0,) * len(anchors)))
    audio = AudioDataConfig(rate=800, seconds=0.5, mel_bins=8, window=80, hop=20, time_width=3, bin_width=2)
    tower = AudioConfig(width=8, depth=1, heads=2, patch_frames=4, patch_bins=4, stride_frames=4, stride_bins=4)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, kind="clips", anchors=anchors, audio=audio, video=VideoDataConfig(frames=3)),
        model=dataclasses.replace(base.model, audio=tower, video=VideoConfig(heads=2)),
        objective=settings,
    )


def media_batch(*anchors: str, seed: int = 0, share: float = 0.6) -> Batch:
    """`batch` with random inputs of these anchors; of several, each is there for a share of the rows."""
    found, r = batch(seed), np.random.default_rng(seed)
    size = len(found.index)
    made = {
        "image": found.inputs["image"],
        "audio": Tokens(
            values=r.integers(-9999, 9999, (size, 400)).astype(np.int16), mask=np.arange(21)[None] < r.integers(3, 21, (size, 1))
        ),
        "video": Tokens(values=r.integers(0, 256, (size, 3, 16, 16, 3), dtype=np.uint8)),
    }
    present = {name: np.ones(size, bool) if len(anchors) == 1 else r.random(size) < share for name in anchors}
    inputs = {name: made[name] for name in anchors} | {"text": found.inputs["text"]}
    return dataclasses.replace(found, inputs=inputs, present=present | {"text": np.ones(size, bool)})
