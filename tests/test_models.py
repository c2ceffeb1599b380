"""Towers and heads: shapes, masks, both image towers, both tiny details that break silently."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bacl_jax.models import Model

BATCH = jax.tree.map(jnp.asarray, tiny.batch())
IMAGES, TEXT = BATCH.inputs["image"].values, BATCH.inputs["text"]


def model(kind="conv", **objective):
    config = tiny.config(**objective)
    image = dataclasses.replace(config.model.image, kind=kind)
    return Model(dataclasses.replace(config, model=dataclasses.replace(config.model, image=image)), tiny.VOCABULARY)


@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_image_towers(kind):
    m = model(kind)
    params = jax.jit(m.init)(jax.random.key(0))
    found = jax.jit(m.encode_image)(params, IMAGES)
    assert found.pooled.shape == (16, 16)
    assert found.tokens.shape == (16, m.grid[0] * m.grid[1], 8)
    chex.assert_trees_all_close(jnp.linalg.norm(found.pooled, axis=1), jnp.ones(16), rtol=1e-5)
    grads = jax.jit(jax.grad(lambda p: (m.encode_image(p, IMAGES).pooled[:, 0] * jnp.arange(16)).sum()))(params)
    used = {name for name, g in grads["towers"]["image"].items() if max(float(jnp.abs(x).max()) for x in jax.tree.leaves(g)) > 0}
    assert {"stem", "head", "norm"} <= used


def test_padding_changes_no_embedding():
    m = model()
    params = jax.jit(m.init)(jax.random.key(0))
    junk = jnp.where(TEXT.mask, TEXT.values, 17)
    one, other = (jax.jit(m.encode_text)(params, ids, TEXT.mask) for ids in (TEXT.values, junk))
    chex.assert_trees_all_close(one.pooled, other.pooled, atol=1e-6)


def test_attention_rows_are_distributions_over_patches():
    m = model()
    params = jax.jit(m.init)(jax.random.key(0))
    text, image = jax.jit(m.encode_text)(params, TEXT.values, TEXT.mask), jax.jit(m.encode_image)(params, IMAGES)
    attention, logit = jax.jit(m.attend)(params, text, image)
    assert attention.shape == (16, 8, 16)
    assert logit.shape == (16,)
    chex.assert_trees_all_close(attention.sum(-1), jnp.ones((16, 8)), rtol=1e-5)


def test_a_part_that_is_off_is_named():
    config = tiny.config()
    off = dataclasses.replace(config.objective, cla=dataclasses.replace(config.objective.cla, enabled=False))
    m = Model(dataclasses.replace(config, objective=off), tiny.VOCABULARY)
    params = jax.jit(m.init)(jax.random.key(0))
    features = jax.jit(m.encode_image)(params, IMAGES)
    with pytest.raises(ValueError, match="no cross_attention"):
        m.attend(params, features, features)


def test_policy_is_bounded():
    m = model()
    params = jax.jit(m.init)(jax.random.key(0))
    r = np.random.default_rng(0)
    z, w = jnp.asarray(r.normal(size=(4, 16)), jnp.float32), jnp.asarray(r.normal(size=(9, 16)), jnp.float32)
    picked = jnp.asarray(r.integers(0, 9, (4, 5)))
    s = (z @ w.T)[jnp.arange(4)[:, None], picked]
    assert float(jnp.abs(m.policy(params, z, w, picked, s, s - 0.5)).max()) == 0  # at first the schedule alone draws
    huge = jax.tree.map(lambda x: x * 1e3 + 1, params["policy"])
    score = m.policy({"policy": huge}, z, w, picked, s, s - 0.5)
    assert 0 < float(jnp.abs(score).max()) <= 1.0
    two = picked.at[0, 0].set(picked[1, 1]).at[1, 1].set(picked[0, 0])  # a score depends on the picked column alone
    swapped = m.policy({"policy": huge}, z, w, two, s, s - 0.5)
    np.testing.assert_array_equal(np.asarray(score)[2:], np.asarray(swapped)[2:])


def test_bfloat16_computes_low_and_returns_float32_embeddings():
    config = tiny.config()
    low = Model(dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16")), tiny.VOCABULARY)
    params = jax.jit(low.init)(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    found = jax.jit(low.encode_image)(params, IMAGES)
    assert (found.pooled.dtype, found.tokens.dtype) == (jnp.float32, jnp.bfloat16)
