"""The search for the most similar columns: what it finds, that devices and tiles change nothing, and what it does not make."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.config import MeshConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.objective.similarity import BLOCK, MASKED, Rows, better, positives, search

A, N, D = 24, 200, 16


def side(r, n, valid=1.0):
    x = r.normal(size=(n, D))
    ids = [jnp.asarray(np.stack([r.integers(0, 60, n)] * 2, 1), jnp.uint32) for _ in range(2)]
    x = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)
    return Rows(x=x, caption_id=ids[0], anchor_id=ids[1], valid=jnp.asarray(r.random(n) < valid))


def problem():
    r = np.random.default_rng(0)
    return side(r, A), side(r, N, valid=0.7), jnp.asarray(r.integers(0, N, (A, 5)), jnp.int32)


def expected(query, columns, asked, k):
    s = jnp.where(~positives(query, columns) & columns.valid[None], query.x @ columns.x.T, MASKED)
    best, column = jax.lax.top_k(s, k)
    return best, column, jnp.take_along_axis(s, asked, 1)


@pytest.mark.parametrize("shape", [(), (8, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("tile", [7, 1024])
def test_finds_the_most_similar_valid_columns_that_are_no_positives(shape, tile):
    shards = Shards(make_mesh(MeshConfig(*shape)) if shape else None, tile)
    found = jax.jit(functools.partial(search, k=9, shards=shards))(*problem())
    gaps = -np.diff(np.asarray(expected(*problem(), 10)[0]), axis=1)
    assert gaps.min() > 1e-6  # so that rounding does not change which are found
    chex.assert_trees_all_close(tuple(found), expected(*problem(), 9), rtol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 9, 32])
@pytest.mark.parametrize("kind", ["random", "ties", "rising", "one block", "a block each", "masked"])
def test_a_cpu_that_looks_at_blocks_finds_what_a_whole_selection_finds(kind, k):
    """The best so far and a tile of 1,024 columns, merged: the same values at the same columns, ties to the lower one."""
    r = np.random.default_rng(k)
    s = r.normal(size=(A, 64 * BLOCK)).astype(np.float32)
    if kind == "ties":
        s = np.round(s)
    elif kind == "rising":
        s = np.sort(s, axis=1)
    elif kind == "one block":
        s[:, 5 * BLOCK : 6 * BLOCK] += 10
    elif kind == "a block each":
        s[:, ::BLOCK] += 10
    elif kind == "masked":
        s[:, 3:] = MASKED
    best = -np.sort(-r.normal(size=(A, k)).astype(np.float32), axis=1) - (0 if kind == "random" else 5)
    column = r.integers(0, 100, (A, k)).astype(np.int32)
    found, where = jax.jit(functools.partial(better, recall=1.0))(*map(jnp.asarray, (best, column, s, np.int32(100))))
    value, order = jax.lax.top_k(jnp.concatenate([best, s], 1), k)
    chex.assert_trees_all_equal(found, value)
    every = np.concatenate([column, np.broadcast_to(100 + np.arange(s.shape[1]), s.shape)], 1)
    np.testing.assert_array_equal(where, np.take_along_axis(every, np.asarray(order), 1))


@pytest.mark.parametrize("wanted", [0, 1, 3, 4, 5, 8, 9, 15, 16, 17, 40])
def test_a_cpu_looks_at_every_block_that_beats_the_best_so_far(wanted):
    """Some rows want as many blocks of a tile as named, the others fewer: all that belongs to their best is found."""
    r, k = np.random.default_rng(wanted), 32
    s = -100 + r.random((A, 64 * BLOCK)).astype(np.float32)
    for row in range(A):
        blocks = r.permutation(64)[: wanted - row % 3 if wanted > 2 else wanted]
        s[row, blocks * BLOCK + r.integers(0, BLOCK, len(blocks))] = 1 + r.random(len(blocks))
        s[row, blocks * BLOCK + r.integers(0, BLOCK, len(blocks))] = 1 + r.random(len(blocks))
    best = -np.sort(-r.random((A, k)).astype(np.float32), axis=1)
    column = r.integers(0, 100, (A, k)).astype(np.int32)
    highest = s.reshape(A, 64, BLOCK).max(2)
    assert (highest > best[:, -1:]).sum(1).max() == wanted
    found, where = jax.jit(functools.partial(better, recall=1.0))(*map(jnp.asarray, (best, column, s, np.int32(100))))
    value, order = jax.lax.top_k(jnp.concatenate([best, s], 1), k)
    chex.assert_trees_all_equal(found, value)
    every = np.concatenate([column, np.broadcast_to(100 + np.arange(s.shape[1]), s.shape)], 1)
    np.testing.assert_array_equal(where, np.take_along_axis(every, np.asarray(order), 1))


def test_a_search_over_several_tiles_finds_what_one_selection_finds():
    """7,000 columns in tiles of 2,048, which a CPU looks at in blocks; 24 queries in tiles of 16."""
    r = np.random.default_rng(3)
    query, columns, asked = side(r, A), side(r, 7000, valid=0.9), jnp.asarray(r.integers(0, 7000, (A, 5)), jnp.int32)
    found = jax.jit(functools.partial(search, k=32, shards=Shards(None, 1024)))(query, columns, asked)
    best, _, asked_s = expected(query, columns, asked, 32)
    chex.assert_trees_all_close((found.s, found.asked_s), (best, asked_s), rtol=1e-5, atol=1e-6)
    s = np.asarray(jnp.where(~positives(query, columns) & columns.valid[None], query.x @ columns.x.T, MASKED))
    np.testing.assert_allclose(np.take_along_axis(s, np.asarray(found.column), 1), best, rtol=1e-5)
    assert all(len(set(row)) == 32 for row in found.column.tolist())


def test_where_there_are_fewer_the_rest_is_masked():
    query, columns, asked = problem()
    few = Rows(
        x=columns.x[:4], caption_id=columns.caption_id[:4], anchor_id=columns.anchor_id[:4], valid=jnp.asarray([True, False, True, False])
    )
    found = search(query, few, asked % 4, k=9)
    assert found.s.shape == (A, 4)
    assert ((found.s > MASKED / 2).sum(1) == (~positives(query, few) & few.valid[None]).sum(1)).all()
    assert bool((found.column < 4).all())


def test_carries_no_gradient():
    query, columns, asked = problem()
    grad = jax.grad(lambda x: search(Rows(x=x, **ids(query)), columns, asked, k=3).s.sum())(query.x)
    assert float(jnp.abs(grad).max()) == 0


def ids(rows):
    return {"caption_id": rows.caption_id, "anchor_id": rows.anchor_id, "valid": rows.valid}


def shapes(n, dim):
    u = jax.ShapeDtypeStruct((n, 2), jnp.uint32)
    return Rows(x=jax.ShapeDtypeStruct((n, dim), jnp.float32), caption_id=u, anchor_id=u, valid=jax.ShapeDtypeStruct((n,), bool))


def test_the_score_matrix_never_exists():
    """256 queries against 65,536 columns: 64 MiB of scores; a tile has 1."""
    asked = jax.ShapeDtypeStruct((256, 0), jnp.int32)
    made = jax.jit(functools.partial(search, k=32)).lower(shapes(256, 64), shapes(65536, 64), asked).compile()
    assert made.memory_analysis().temp_size_in_bytes < 16 * 2**20


def test_columns_stay_where_they_are():
    """On eight devices nothing as large as a device's columns is sent: the queries travel."""
    asked = jax.ShapeDtypeStruct((64, 0), jnp.int32)
    text = (
        jax.jit(functools.partial(search, k=4, shards=Shards(make_mesh(MeshConfig()))))
        .lower(shapes(64, 32), shapes(65536, 32), asked)
        .compile()
        .as_text()
    )
    assert "all-gather" not in text
    assert "f32[8,32]" in text
    assert not [line for line in text.splitlines() if "collective-permute(" in line and "[8192," in line]


def test_approximate_search_is_exact_off_tpu():
    query, columns, asked = problem()
    chex.assert_trees_all_equal(search(query, columns, asked, k=4, recall=0.9), search(query, columns, asked, k=4, shards=ONE_DEVICE))
