"""InfoNCE against a few lines of numpy, its invariances and its floor."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.objective import infonce
from bacl_jax.objective.similarity import Rows, cosine, positives, same_id, same_pair
from bacl_jax.objective.tile import Tile


def direction(logits, positive, *, same_id="positive", weight=None, drawn=None, axis=1, give=0):
    """Loss of every row (axis 1) or column of one tile that is the whole batch; give 1: the least it can be."""
    term = infonce.term(same_id)
    weight = jnp.zeros_like(logits) if weight is None else weight
    tile = Tile(logits, logits, positive, jnp.eye(*logits.shape, dtype=bool), weight, weight)
    sums = term.add(term.start(logits.shape[1 - axis]), tile, axis)
    return term.end(sums if drawn is None else term.add_drawn(sums, *drawn))[give]


def reference(logits, positive, weight, drawn, valid):
    """The sum written out, one row at a time."""
    rows = []
    for i in range(len(logits)):
        denominator = sum((1 + weight[i, j]) * np.exp(logits[i, j]) for j in range(logits.shape[1]))
        denominator += sum(np.exp(drawn[i, e]) for e in range(drawn.shape[1]) if valid[i, e])
        rows.append(np.log(denominator) - logits[i, positive[i]].mean())
    return np.array(rows)


@pytest.fixture
def problem():
    r = np.random.default_rng(0)
    caption = r.integers(0, 5, 12)
    return {
        "logits": r.normal(size=(12, 12)) * 3,
        "positive": caption[:, None] == caption[None],
        "weight": r.uniform(0, 4, (12, 12)) * (caption[:, None] != caption[None]),
        "drawn": r.normal(size=(12, 5)),
        "valid": r.uniform(size=(12, 5)) < 0.7,
    }


def test_equals_numpy(problem):
    p = {k: jnp.asarray(v, None if v.dtype == bool else jnp.float32) for k, v in problem.items()}
    got = direction(p["logits"], p["positive"], weight=p["weight"], drawn=(p["drawn"], p["valid"]))
    chex.assert_trees_all_close(np.asarray(got), reference(*problem.values()).astype(np.float32), rtol=1e-5)


def test_columns_have_weights_of_their_own(problem):
    p = {k: jnp.asarray(v, None if v.dtype == bool else jnp.float32) for k, v in problem.items()}
    got = direction(p["logits"], p["positive"], weight=p["weight"], axis=0)
    chex.assert_trees_all_close(got, direction(p["logits"].T, p["positive"].T, weight=p["weight"].T), rtol=1e-5)


def test_without_extras_is_cross_entropy(problem):
    logits = jnp.asarray(problem["logits"], jnp.float32)
    got = direction(logits, jnp.eye(12, dtype=bool))
    chex.assert_trees_all_close(got, -jnp.diagonal(jax.nn.log_softmax(logits, axis=1)), rtol=1e-5)


def test_mask_leaves_other_positives_out(problem):
    logits = jnp.asarray(problem["logits"], jnp.float32)
    positive = jnp.asarray(problem["positive"])
    got = direction(logits, positive, same_id="mask")
    changed = direction(jnp.where(positive & ~jnp.eye(12, dtype=bool), 50.0, logits), positive, same_id="mask")
    chex.assert_trees_all_close(got, changed)


def test_invalid_drawn_columns_change_nothing(problem):
    logits, positive = jnp.asarray(problem["logits"], jnp.float32), jnp.asarray(problem["positive"])
    junk = jnp.full((12, 3), 40.0)
    got = direction(logits, positive, drawn=(junk, jnp.zeros((12, 3), bool)))
    chex.assert_trees_all_close(got, direction(logits, positive))


def test_floor_is_reached_by_perfect_logits():
    caption = np.array([0, 0, 1, 2, 2, 2])
    positive = jnp.asarray(caption[:, None] == caption[None])
    perfect = jnp.where(positive, 60.0, -60.0)
    chex.assert_trees_all_close(direction(perfect, positive), direction(perfect, positive, give=1), rtol=1e-5)
    chex.assert_trees_all_close(direction(perfect, positive, give=1), jnp.log(jnp.asarray([2.0, 2, 1, 3, 3, 3])), rtol=1e-6)


def test_ids_use_all_64_bits():
    a = jnp.asarray([[1, 2], [1, 3]], jnp.uint32)
    other = jnp.asarray([[9, 9], [8, 8]], jnp.uint32)
    ids = lambda caption, anchor: Rows(x=None, valid=None, caption_id=caption, anchor_id=anchor)  # noqa: E731
    assert same_id(a, a).tolist() == [[True, False], [False, True]]
    rows, turned, both = ids(a, other), ids(a[::-1], other), ids(a[::-1], other[::-1])
    assert positives(rows, turned).tolist() == [[True, True], [True, True]]
    assert positives(rows, both).tolist() == [[False, True], [True, False]]
    assert same_pair(rows, turned).tolist() == [True, True]
    assert same_pair(rows, both).tolist() == [False, False]


def test_cosine_is_float32_for_bfloat16_embeddings():
    z = jnp.ones((2, 4), jnp.bfloat16)
    assert cosine(z, z).dtype == jnp.float32
