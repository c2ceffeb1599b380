"""Channel (c): partner lists out of the bank."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from bacl_jax.config_objective import BNSConfig
from bacl_jax.mesh import to_global
from bacl_jax.objective import bank as memory
from bacl_jax.objective.partners import partner_lists
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.train.step import build


def full_bank(size=60, filled=50, dim=8, captions=20):
    r = np.random.default_rng(0)
    caption = r.integers(0, captions, size)
    z = r.normal(size=(captions, dim))[caption] + 0.1 * r.normal(size=(size, dim))
    z = jnp.asarray(z / np.linalg.norm(z, axis=1, keepdims=True), jnp.float32)
    bank = dataclasses.replace(
        memory.empty(size, 4, dim),
        caption_id=jnp.asarray(np.stack([caption, caption], 1), jnp.uint32),
        anchor_id=jnp.asarray(np.stack([np.arange(size)] * 2, 1), jnp.uint32),
        index=jnp.where(jnp.arange(size) < filled, jnp.arange(size) + 100, -1),
        anchor=z,
        text=z,
    )
    return bank, caption


def lists(bank, alpha, shards=ONE_DEVICE, **config):
    config = BNSConfig(enabled=True, k=8, pool=40, partner_k=4, **config)
    zero = lambda anchor, columns, pick, s, boundary: jnp.zeros_like(s)  # noqa: E731
    index, found = partner_lists(bank, zero, jax.random.key(0), alpha=jnp.float32(alpha), config=config, shards=shards)
    return np.asarray(index), np.asarray(found)


def test_partners_are_other_captions_once_each_and_empty_slots_have_none():
    bank, caption = full_bank()
    index, found = lists(bank, -0.5)
    assert index.tolist() == bank.index.tolist()
    assert (found[50:] == -1).all()
    assert (found[:50] >= 100).any(axis=1).all()
    for slot in range(50):
        drawn = caption[found[slot][found[slot] >= 0] - 100]
        assert caption[slot] not in drawn
        assert len(set(drawn)) == len(drawn)


def test_late_partners_are_harder_than_early_ones():
    bank, _ = full_bank()
    s = np.asarray(bank.anchor @ bank.text.T)

    def mean(found):
        return np.mean([s[slot, found[slot][found[slot] >= 0] - 100].mean() for slot in range(50)])

    assert mean(lists(bank, -0.5)[1]) > mean(lists(bank, 0.0)[1]) > mean(lists(bank, 0.3)[1])


def test_tiles_change_nothing():
    bank, _ = full_bank()
    assert (lists(bank, -0.2)[1] == lists(bank, -0.2, shards=Shards(tile=7))[1]).all()


def test_trainer_gives_rows_of_the_source():
    bns = BNSConfig(enabled=True, k=4, pool=12, partner_k=3, reweight=False, hidden=8)
    mesh = tiny.one_device()
    trainer = build(
        dataclasses.replace(tiny.plain(), objective=dataclasses.replace(tiny.plain().objective, bns=bns)), tiny.VOCABULARY, mesh
    )
    state = trainer.init(0)
    for i in range(2):
        state, _ = trainer.step(state, to_global(trainer.mesh, tiny.batch(i)))
    index, found = (np.asarray(x) for x in trainer.partner_lists(state))
    assert index.shape == (48,)
    assert found.shape == (48, 3)
    assert set(found[index >= 0].ravel()) <= {-1, *index.tolist()}
