"""The project's side of `make bench`, a case a process: `python -m benchmarks.ours CASE` (see benchmarks/measure.py)."""

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bacl_jax import data
from bacl_jax.config import Config, from_config_dict
from bacl_jax.data import manifest
from bacl_jax.mesh import make_mesh
from bacl_jax.objective.contrast import contrast
from bacl_jax.objective.similarity import Rows, search
from bacl_jax.objective.tile import Side
from bacl_jax.train.hooks import return_freed_memory
from bacl_jax.train.step import build
from bacl_jax.types import Batch, Tokens
from benchmarks.measure import MIB, serve
from configs.studies import emoji as study
from launch import compare_points, points

VOCABULARY, CONTEXT, EMOJI_WORDS = 8192, 32, 2048


def towers(batch: int, micro_batches: int = 1, **model: Any) -> Config:
    """The towers of the comparison: 6.15 M parameters, InfoNCE, AdamW, float32."""
    return from_config_dict(
        {
            "data": {"image_size": 64, "context_length": CONTEXT, "vocab_size": VOCABULARY},
            "model": {
                "embed_dim": 192,
                "image": {"kind": "vit", "width": 192, "depth": 6, "heads": 3, "patch": 8},
                "text": {"width": 192, "depth": 4, "heads": 3},
                **model,
            },
            "optim": {"lr": 5e-4, "weight_decay": 0.2},
            "train": {"batch_size": batch, "micro_batches": micro_batches},
        }
    )


def random_batch(config: Config, vocabulary: int) -> Batch:
    """Random pictures and captions of random length, on the device."""
    r, size, length = np.random.default_rng(0), config.train.batch_size, config.data.context_length
    side = config.data.image_size
    mask = np.arange(length) <= r.integers(length // 4, length, size)[:, None]
    ids = np.where(mask, r.integers(4, vocabulary, (size, length)), 0).astype(np.int32)
    number = np.stack([np.arange(size), np.zeros(size)], 1).astype(np.uint32)
    present = np.ones(size, bool)
    images = r.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    return jax.device_put(
        Batch(
            inputs={"image": Tokens(values=images), "text": Tokens(values=ids, mask=mask)},
            present={"image": present, "text": present},
            caption_id=number,
            anchor_id=number,
            index=np.arange(size, dtype=np.int32),
        )
    )


def step(config: Config, vocabulary: int = VOCABULARY) -> tuple[Callable[[], Any], dict[str, float]]:
    """One train step after another, each waited for."""
    trainer = build(config, vocabulary, make_mesh(config.mesh))
    state, batch = trainer.init(0), random_batch(config, vocabulary)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    compiled = trainer.step.lower(state, batch).compile()
    return_freed_memory()  # as the training loop does
    temp = compiled.memory_analysis().temp_size_in_bytes / MIB
    box = [state]

    def call() -> None:
        box[0], metrics = compiled(box[0], batch)
        jax.block_until_ready(metrics)

    return call, {"parameters": parameters, "temp_mib": temp}


def loss(size: int, dim: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """The contrastive term, the way that "auto" takes, forward and backward, to both sides and the scale."""
    x, y = (unit_rows(seed, size, dim) for seed in range(2))
    number = jnp.stack([jnp.arange(size, dtype=jnp.uint32), jnp.zeros(size, jnp.uint32)], 1)
    drawn = rows_of(jnp.zeros((0, dim)))

    def value(x: jax.Array, y: jax.Array, scale: jax.Array) -> jax.Array:
        none = jnp.zeros((size, 0), jnp.int32)
        sides = (Side(x=z, caption_id=number, anchor_id=number, candidate=none, weight=none.astype(jnp.float32)) for z in (x, y))
        return contrast(*sides, drawn, scale=scale, bias=None, config=Config().objective)[0]

    scale = jnp.float32(1 / 0.07)
    compiled = jax.jit(jax.value_and_grad(value, (0, 1, 2))).lower(x, y, scale).compile()
    temp = compiled.memory_analysis().temp_size_in_bytes / MIB
    return lambda: jax.block_until_ready(compiled(x, y, scale)), {"temp_mib": temp}


def topk(queries: int, bank: int, dim: int, k: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """The search through a bank, exact, for rows of other ids than the bank's."""
    columns, query = rows_of(unit_rows(0, bank, dim)), rows_of(unit_rows(1, queries, dim), first=bank)
    asked = jnp.zeros((queries, 0), jnp.int32)
    compiled = jax.jit(functools.partial(search, k=k)).lower(query, columns, asked).compile()
    temp = compiled.memory_analysis().temp_size_in_bytes / MIB
    return lambda: jax.block_until_ready(compiled(query, columns, asked)), {"temp_mib": temp}


def unit_rows(seed: int, size: int, dim: int) -> jax.Array:
    x = np.random.default_rng(seed).standard_normal((size, dim), dtype=np.float32)
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def rows_of(x: jax.Array, first: int = 0) -> Rows:
    """Rows with ids of their own, numbered from `first`."""
    number = jnp.arange(first, first + x.shape[0], dtype=jnp.uint32)
    ids = jnp.stack([number, jnp.zeros_like(number)], 1)
    return Rows(x=x, caption_id=ids, anchor_id=ids, valid=jnp.ones(x.shape[0], bool))


def train_step(batch: int, model: dict[str, Any], micro_batches: int = 1) -> tuple[Callable[[], Any], dict[str, float]]:
    return step(towers(batch, micro_batches, **model))


def emoji_step(variant: str) -> tuple[Callable[[], Any], dict[str, float]]:
    """A step of a variant of configs/studies/emoji.py on random pairs of the emoji pairs' sizes."""
    return step(points.config_of(compare_points.point(variant, 0, steps=study.STEPS)), EMOJI_WORDS)


def pipeline(folder: str, batch: int, size: int, batches: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """The input pipeline over a manifest: pictures opened, cropped and scaled, captions as token ids; a reader a core."""
    config = from_config_dict(
        {
            "data": {"kind": "manifest", "path": f"{folder}/pairs.csv", "image_size": size, "threads": os.cpu_count(), "prefetch": 1},
            "train": {"batch_size": batch},
        }
    )
    manifest.KEPT_BYTES = 0  # as where the pictures do not fit in memory: each is decoded when it is read, as the peer does
    dataset = data.load(config.data)
    source = data.batches(dataset, data.Tokenizer.train(dataset.captions, config.data), config, start_step=0)
    return lambda: [next(source) for _ in range(batches)], {}


CASES = {"train_step": train_step, "loss": loss, "topk": topk, "emoji_step": emoji_step, "pipeline": pipeline}

if __name__ == "__main__":
    serve(functools.partial(CASES[sys.argv[1]], **json.loads(sys.argv[2])))
