"""A cross-modal head trained afterwards on frozen towers with the matching loss alone: what localisation is compared with.

A model trained without CLA has no cross-modal layers to look at. This gives it the same ones as CLA's, trained as long as
asked for, while its towers stay as they are.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import optax
from jaxtyping import Array, Float

from bacl_jax import data
from bacl_jax.config import Config
from bacl_jax.data.source import DataSet
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.models import Model
from bacl_jax.objective import bacl
from bacl_jax.objective.shards import ONE_DEVICE
from bacl_jax.train.encode import encode
from bacl_jax.types import Batch, Features

LR = 1e-3
ROW_SHARE = 0.25  # of every batch; with 500 steps as many pairs as CLA's default share sees in 1,000


def train_head(
    config: Config, dataset: DataSet, tokenizer: Tokenizer, params: dict[str, Any], *, steps: int
) -> Callable[[Features, Features], Float[Array, "B T P"]]:
    """Trains the head on the run's own batches (the negative is the hardest of the batch) and returns its attention.

    params: those of the run; only the towers are used, without gradient. Cost: a forward pass of the towers and the head's
    own step, `steps` times. Adam, cosine from 1e-3 to 0.
    """
    config = with_head(config)
    model = Model(config, tokenizer.vocab_size)
    optimizer = optax.adam(optax.cosine_decay_schedule(LR, steps))

    def loss(head: dict[str, Any], batch: Batch) -> Array:
        pairs = encode(model, params, batch)
        groups = bacl.Groups.of(config.train.batch_size, 1, ONE_DEVICE)
        encode_text = functools.partial(model.encode_text, params)
        negatives = bacl.from_batch(pairs, *bacl.most_similar(pairs), groups, config.objective)
        attend = functools.partial(model.attend_each, head)
        return bacl.local_terms(pairs, negatives, attend, encode_text, None, groups, config.objective)[1]

    @jax.jit
    def step(head: dict[str, Any], state: Any, batch: Batch) -> tuple[dict[str, Any], Any]:
        updates, state = optimizer.update(jax.grad(loss)(head, batch), state)
        return cast(dict[str, Any], optax.apply_updates(head, updates)), state

    head = {"cross_attention": model.init(jax.random.key(config.seed))["cross_attention"]}
    state = optimizer.init(head)
    source = data.batches(dataset, tokenizer, config, start_step=0)
    for _ in range(steps):
        head, state = step(head, state, next(source)[1])
    return jax.jit(lambda text, anchor: model.attend(head, text, anchor)[0])


def with_head(config: Config) -> Config:
    """The same run with CLA's layers and without BNS."""
    objective = config.objective
    cla, bns = dataclasses.replace(objective.cla, enabled=True, row_share=ROW_SHARE), dataclasses.replace(objective.bns, enabled=False)
    return dataclasses.replace(config, objective=dataclasses.replace(objective, cla=cla, bns=bns))
