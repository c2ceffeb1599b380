"""Rows over eight fake devices: fetching those of another device, the way round, tiles."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.config import MeshConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.objective.shards import ONE_DEVICE, Shards, cut, padded, tiles, travel, whole


@pytest.mark.parametrize("shape", [(), (8, 1, 1), (2, 2, 2)])
def test_fetch_brings_the_rows_that_were_asked_for(shape):
    shards = Shards(make_mesh(MeshConfig(*shape))) if shape else ONE_DEVICE
    r = np.random.default_rng(0)
    tree = {"ids": jnp.asarray(r.integers(0, 99, (64, 5))), "mask": jnp.asarray(r.random(64) < 0.5)}
    index = jnp.asarray(r.integers(0, 64, 24))
    found = jax.jit(shards.fetch)(tree, index)
    chex.assert_trees_all_equal(found, jax.tree.map(lambda x: x[index], tree))


def test_fetch_sends_rows_and_not_the_array():
    """All that moves is what 16 of 4,096 rows need, round eight devices."""
    shards = Shards(make_mesh(MeshConfig()))
    x = jax.ShapeDtypeStruct((4096, 77), jnp.int32)
    text = jax.jit(shards.fetch).lower(x, jax.ShapeDtypeStruct((16,), jnp.int32)).compile().as_text()
    assert "all-gather" not in text
    assert "s32[2,77]" in text


def test_every_block_meets_every_device_and_comes_home():
    shards = Shards(make_mesh(MeshConfig(2, 2, 2)))

    def local(x):
        def visit(seen, block, luggage, owner):
            return seen.at[owner].set(block[0]), luggage + seen.shape[0] * 0 + jax.lax.axis_index(shards.axes)

        return travel(visit, jnp.zeros(8), x, jnp.zeros_like(x), shards.axes)

    seen, luggage = jax.jit(functools.partial(shards.map, local))(jnp.arange(8.0))
    assert seen.reshape(8, 8).tolist() == [list(range(8))] * 8
    assert luggage.tolist() == [28.0] * 8


def test_top_k_of_rows_is_local():
    shards = Shards(make_mesh(MeshConfig()))
    x = jax.random.normal(jax.random.key(0), (16, 40))
    top = jax.jit(functools.partial(shards.top_k, k=3))
    chex.assert_trees_all_equal(top(x), jax.lax.top_k(x, 3)[1])
    assert "all-gather" not in top.lower(x).compile().as_text()


@pytest.mark.parametrize("shape", [(), (4, 2, 1), (2, 2, 2)])
def test_in_parts_is_the_function_and_its_gradient(shape):
    shards = Shards(make_mesh(MeshConfig(*shape)) if shape else None, parts=2)
    x, w = jax.random.normal(jax.random.key(0), (32, 6)), jax.random.normal(jax.random.key(1), (6, 5))

    def loss(w, run):
        y, s = run(lambda rows: (jnp.tanh(rows[0] @ w), (rows[1] * w[0, 0]).sum(1)), (x, x))
        return (y * jnp.arange(32.0)[:, None]).sum() + jnp.square(s).sum()

    whole = jax.value_and_grad(loss)(w, lambda function, rows: function(rows))
    chex.assert_trees_all_close(jax.jit(jax.value_and_grad(functools.partial(loss, run=shards.in_parts)))(w), whole, rtol=1e-4)


def test_parts_take_the_memory_of_one():
    w = jax.ShapeDtypeStruct((256, 256), jnp.float32)

    def temp(parts):
        def loss(w, x):
            deep = lambda x: functools.reduce(lambda x, _: jnp.tanh(x @ w), range(8), x)  # noqa: E731
            return Shards(parts=parts).in_parts(deep, x).sum()

        made = jax.jit(jax.grad(loss)).lower(w, jax.ShapeDtypeStruct((4096, 256), jnp.float32)).compile()
        return made.memory_analysis().temp_size_in_bytes

    assert temp(8) < 0.5 * temp(1)


def test_rows_that_do_not_divide_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="12 rows do not divide over 8 devices"):
        Shards(make_mesh(MeshConfig())).map(lambda x: x, jnp.zeros(12))


@pytest.mark.parametrize(("size", "most", "tile"), [(4096, 512, 512), (6, 4, 3), (7, 4, 1), (3, 10, 3)])
def test_tiles_divide(size, most, tile):
    assert tiles(size, most) == tile


def test_cut_and_whole():
    x = jnp.arange(10).reshape(5, 2)
    assert cut(padded(x, 3), 3).shape == (2, 3, 2)
    chex.assert_trees_all_equal(whole(cut(padded(x, 3), 3))[:5], x)
