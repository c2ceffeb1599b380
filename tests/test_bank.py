"""The ring buffer: slots depend on the step alone, empty slots never count, any size against any batch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.config import MeshConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.objective import bank as memory
from bacl_jax.objective.shards import Shards


def rows(step, count):
    index = step * count + np.arange(count)
    return {
        "caption_id": jnp.asarray(np.stack([index, index], 1), jnp.uint32),
        "anchor_id": jnp.asarray(np.stack([index, index + 1], 1), jnp.uint32),
        "index": jnp.asarray(index, jnp.int32),
        "ids": jnp.tile(jnp.asarray(index, jnp.int32)[:, None], (1, 3)),
        "mask": jnp.ones((count, 3), bool),
        "anchor": jnp.tile(jnp.asarray(index, jnp.float32)[:, None], (1, 2)),
        "text": jnp.tile(jnp.asarray(index, jnp.float32)[:, None], (1, 2)),
    }


@pytest.mark.parametrize(("size", "count"), [(8, 3), (8, 8), (5, 8), (12, 4), (7, 1)])
def test_slot_of_row_g_of_step_t(size, count):
    bank = memory.empty(size, 3, 2)
    expected = np.full(size, -1)
    for step in range(5):
        bank = memory.push(bank, write=jnp.asarray(True), **rows(step, count))
        for g in range(count):
            expected[(step * count + g) % size] = step * count + g
        assert bank.index.tolist() == expected.tolist()
        assert bank.ids[:, 0].tolist() == np.where(expected < 0, 0, expected).tolist()
        assert bank.filled.tolist() == (expected >= 0).tolist()
        assert int(bank.cursor) == (step + 1) * count % size


@pytest.mark.parametrize(("size", "count"), [(16, 8), (8, 16), (24, 16)])
def test_over_eight_devices_every_row_is_in_the_same_slot(size, count):
    shards = Shards(make_mesh(MeshConfig()))
    push = jax.jit(memory.push, static_argnames="shards")
    one = eight = memory.empty(size, 3, 2)
    for step in range(4):
        write = jnp.asarray(step != 2)
        one = push(one, write=write, **rows(step, count))
        eight = push(eight, write=write, shards=shards, **rows(step, count))
        chex.assert_trees_all_equal(eight, one)


def test_skipped_step_keeps_content_and_moves_on():
    bank = memory.push(memory.empty(6, 3, 2), write=jnp.asarray(True), **rows(0, 4))
    skipped = memory.push(bank, write=jnp.asarray(False), **rows(1, 4))
    assert skipped.index.tolist() == bank.index.tolist()
    assert int(skipped.cursor) == 2


def test_representative_is_the_last_valid_copy():
    ids = jnp.asarray([[1, 0], [2, 0], [1, 0], [0, 1], [2, 0], [1, 0]], jnp.uint32)
    valid = jnp.asarray([True, True, True, True, True, False])
    assert memory.representative(ids, valid).tolist() == [False, False, True, True, True, False]
    assert memory.representative(ids, jnp.zeros(6, bool)).tolist() == [False] * 6


def test_of_a_caption_the_newest_copy_counts_wherever_the_ring_began_anew():
    """Ten slots, batches of four: the third batch lies in slots 8, 9, 0, 1. Caption 5 is in slot 5 and then again in slot 0."""
    bank = memory.empty(10, 3, 2)
    for step in range(3):
        new = rows(step, 4)
        if step == 2:
            new["caption_id"] = new["caption_id"].at[2].set(5)
        bank = memory.push(bank, write=jnp.asarray(True), **new)
    assert int(bank.cursor) == 2
    assert bank.caption_id[0].tolist() == bank.caption_id[5].tolist() == [5, 5]
    assert bank.texts().valid.tolist() == [slot != 5 for slot in range(10)]
