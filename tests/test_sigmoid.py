"""The sigmoid loss against numpy."""

import chex
import jax.numpy as jnp
import numpy as np

from bacl_jax.objective import sigmoid
from bacl_jax.objective.tile import Tile


def sigmoid_loss(logits, positive, bias, *, same_id="positive", weight=None, drawn=None):
    """The loss of one tile that is the whole batch; both sides have half the weight."""
    term = sigmoid.term(same_id)
    weight = jnp.zeros_like(logits) if weight is None else weight
    tile = Tile(logits, logits + bias, positive, jnp.eye(*logits.shape, dtype=bool), 0.5 * weight, 1.5 * weight)
    sums = term.add(term.start(len(logits)), tile, 1)
    if drawn is not None:
        sums = term.add_drawn(sums, drawn[0] + bias, drawn[1])
    return term.end(sums)[0].mean()


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def test_equals_numpy():
    r = np.random.default_rng(0)
    caption = r.integers(0, 4, 8)
    positive = caption[:, None] == caption[None]
    logits, weight, drawn, valid = (
        r.normal(size=(8, 8)),
        r.uniform(size=(8, 8)) * ~positive,
        r.normal(size=(8, 3)),
        r.uniform(size=(8, 3)) < 0.5,
    )
    b = -1.5
    expected = -((1 + weight) * log_sigmoid(np.where(positive, 1, -1) * (logits + b))).sum() / 8
    expected -= (valid * log_sigmoid(-(drawn + b))).sum() / 8
    f = jnp.float32
    got = sigmoid_loss(f(logits), jnp.asarray(positive), f(b), weight=f(weight), drawn=(f(drawn), jnp.asarray(valid)))
    chex.assert_trees_all_close(got, f(expected), rtol=1e-5)


def test_mask_leaves_other_positives_out():
    positive = jnp.ones((3, 3), bool)
    logits = jnp.arange(9, dtype=jnp.float32).reshape(3, 3)
    expected = -log_sigmoid(np.diagonal(np.asarray(logits))).mean()
    chex.assert_trees_all_close(sigmoid_loss(logits, positive, jnp.float32(0), same_id="mask"), jnp.float32(expected), rtol=1e-5)
