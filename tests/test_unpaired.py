"""Rows that lack one modality in the objective: whose caption is accepted, what the loss of such rows is, what it must not know."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.config import MeshConfig
from bacl_jax.config_objective import BNSConfig, CLAConfig, ObjectiveConfig, UnpairedConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.objective import bank as memory
from bacl_jax.objective import unpaired
from bacl_jax.objective.bacl import bacl_loss
from bacl_jax.objective.pairs import Pairs
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.types import Features

B, D, T, P, M = 16, 12, 6, 4, 48
SETTINGS = UnpairedConfig(enabled=True, start=0.25, k=3, tau_early=0.05, tau_late=0.05, confidence=0.5)
PLAIN = ObjectiveConfig(bank_size=M)


def unit(x):
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def ids(numbers):
    return jnp.asarray(np.stack([np.asarray(numbers) + 1, np.full(len(numbers), 7)], 1), jnp.uint32)


def problem(seed=0, noise=0.1):
    """(the batch, the bank, paired): row i of bank and batch alike has caption i and picture i, or of two alone rows one each.

    Picture and caption of number i lie near each other. In the bank, rows 0 ... 31 are pairs, place 32 + i holds picture 32 + i and caption
    32 + (i + 3) % 16, so that each partner is there, in another place. In the batch, rows 0 ... 7 are pairs; place 8 + i holds picture
    32 + i and caption 32 + (i + 1) % 16.
    """
    r = np.random.default_rng(seed)
    centre = r.normal(size=(M, D))
    draw = lambda numbers: unit(centre[numbers] + noise * r.normal(size=(len(numbers), D)))  # noqa: E731
    picture, caption = np.arange(M), np.where(np.arange(M) < 32, np.arange(M), 32 + (np.arange(M) + 3) % 16)
    bank = dataclasses.replace(
        memory.empty(M, T, D, unpaired=True),
        caption_id=ids(caption),
        anchor_id=ids(picture),
        index=jnp.arange(M),
        ids=jnp.ones((M, T), jnp.int32),
        mask=jnp.ones((M, T), bool),
        anchor=draw(picture),
        text=draw(caption),
        paired=jnp.arange(M) < 32,
    )
    picture, caption = np.r_[:8, 32:40], np.r_[:8, 33:41]
    tokens = lambda n, width: jnp.asarray(r.normal(size=(B, n, width)), jnp.float32)  # noqa: E731
    mask = jnp.ones((B, T), bool)
    batch = Pairs(
        anchor=Features(pooled=draw(picture), tokens=tokens(P, D)),
        text=Features(pooled=draw(caption), tokens=tokens(T, D), mask=mask),
        ids=jnp.asarray(np.tile(caption[:, None], (1, T)) + np.arange(T) % 2, jnp.int32),
        mask=mask,
        caption_id=ids(caption),
        anchor_id=ids(picture),
        paired=jnp.arange(B) < 8,
        weight=(jnp.arange(B) < 8).astype(jnp.float32),
        given=jnp.arange(B) < 8,
    )
    return batch, bank


def attend(text, anchor):
    logits = jnp.einsum("nbtd,bpd->nbtp", text.tokens, anchor.tokens)
    return jax.nn.softmax(logits, axis=-1), logits.mean((2, 3))


@functools.partial(jax.jit, static_argnames=("config", "shards"))
def loss(batch, bank, config=PLAIN, shards=ONE_DEVICE):
    return bacl_loss(
        batch,
        bank,
        log_scale=jnp.log(jnp.float32(5.0)),
        bias=jnp.float32(0.0),
        policy=lambda anchor, columns, pick, s, boundary: jnp.zeros_like(s),
        attend=attend,
        encode_text=lambda ids, mask: Features(pooled=jax.nn.one_hot(ids[:, 0] % D, D), tokens=jnp.zeros((*ids.shape, D)), mask=mask),
        key=jax.random.key(0),
        progress=jnp.float32(1.0),
        config=config,
        shards=shards,
    )


@functools.partial(jax.jit, static_argnames=("config", "shards"))
def find(batch, bank, config=SETTINGS, progress=1.0, shards=ONE_DEVICE):
    z, progress = batch.anchor.pooled, jnp.float32(progress)
    return unpaired.find(z, batch.anchor_id, batch.given, bank, progress, config=config, shards=shards)


def test_captions_are_found():
    batch, bank = problem()
    found = find(batch, bank)
    assert np.asarray(found.accepted).tolist() == [False] * 8 + [True] * 8
    np.testing.assert_array_equal(bank.caption_id[found.slot][8:], batch.anchor_id[8:])  # of picture i it is caption i
    assert float(found.likely[8:].min()) > 0.5


def test_what_is_logged():
    batch, bank = problem()
    found = find(batch, bank)
    captions, truth = bank.caption_id[found.slot], batch.anchor_id
    told = unpaired.diagnostics(found, batch.given, captions, truth)
    assert {name: float(told[f"unpaired_{name}"]) for name in ("accepted", "precision", "recall")} == dict.fromkeys(
        ("accepted", "precision", "recall"), 1.0
    )
    wrong = truth.at[8].set(truth[9]).at[10].set(0)  # one is wrong, of one nothing is known
    told = unpaired.diagnostics(found, batch.given, captions, wrong)
    assert float(told["unpaired_precision"]) == float(told["unpaired_recall"]) == pytest.approx(6 / 7)
    none = dataclasses.replace(found, accepted=jnp.zeros(B, bool))
    told = unpaired.diagnostics(none, batch.given, captions, truth)
    assert np.isnan(told["unpaired_precision"])
    assert float(told["unpaired_recall"]) == 0
    assert set(unpaired.diagnostics(found, batch.given, captions, None)) == {"unpaired_accepted", "unpaired_likely"}


def test_none_is_accepted_before_the_start_or_from_an_empty_bank():
    batch, bank = problem()
    assert not find(batch, bank, progress=0.2).accepted.any()
    assert find(batch, bank, progress=0.3).accepted[8:].all()
    assert not find(batch, memory.empty(M, T, D, unpaired=True)).accepted.any()
    assert not find(batch, dataclasses.replace(bank, paired=jnp.ones(M, bool))).accepted.any()


def test_gates():
    batch, bank = problem()
    row, place = 8, 32 + 13  # picture 32, and where its caption 32 is in the bank

    def accepted(bank, **changes):
        return bool(find(batch, bank, dataclasses.replace(SETTINGS, **changes)).accepted[row])

    assert int(bank.caption_id[place, 0]) == 33
    assert accepted(bank)
    nearer = dataclasses.replace(bank, anchor=bank.anchor.at[40].set(bank.text[place]))  # another picture alone that wants the caption
    assert not accepted(nearer)
    assert accepted(nearer, mutual=2)
    assert accepted(nearer, mutual=0)
    its_own = dataclasses.replace(bank, anchor=bank.anchor.at[32].set(bank.text[place]))  # an older copy of the picture itself
    assert accepted(its_own)
    of_a_pair = dataclasses.replace(bank, anchor=bank.anchor.at[3].set(bank.text[place]))  # one that has its caption is no rival
    assert accepted(of_a_pair)
    as_likely = dataclasses.replace(bank, text=bank.text.at[40].set(bank.text[place]).at[41].set(bank.text[place]))
    assert not accepted(as_likely, mutual=0)  # q is a third
    assert accepted(as_likely, confidence=0.3, mutual=0)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_rows_alone_are_further_negatives(kind):
    """And a probable pair counts with its weight."""
    batch, _ = problem()
    config = ObjectiveConfig(kind=kind, bank_size=M)
    for weights in (np.r_[np.ones(8), np.zeros(8)], np.r_[np.ones(8), 0.5, 0.25, np.zeros(6)]):
        some = dataclasses.replace(batch, weight=jnp.asarray(weights, jnp.float32), paired=jnp.asarray(weights > 0))
        z, w = batch.anchor.pooled, batch.text.pooled
        l, one = 5 * np.asarray(z @ w.T, np.float64), np.eye(B) > 0  # noqa: E741
        if kind == "infonce":
            each = -np.diag(l) + (np.log(np.exp(l).sum(1)) + np.log(np.exp(l).sum(0))) / 2
        else:
            each = np.logaddexp(0, -np.where(one, 1, -1) * l).sum(1)
        want = (weights * each).sum() / weights.sum()
        assert float(loss(some, None, config)[0]) == pytest.approx(want, rel=1e-5)


def test_all_paired_is_as_if_nothing_were_said():
    batch, bank = problem()
    said = dataclasses.replace(batch, paired=jnp.ones(B, bool), weight=jnp.ones(B), given=jnp.ones(B, bool))
    unsaid = dataclasses.replace(batch, paired=None, weight=None, given=None)
    whole = BNSConfig(enabled=True, k=3, pool=8, drawn_share=0.25), CLAConfig(enabled=True, row_share=1.0)
    config = dataclasses.replace(PLAIN, bns=whole[0], cla=whole[1], groups=2)
    (a, of_a), (b, of_b) = loss(said, bank, config), loss(unsaid, bank, config)
    assert float(a) == pytest.approx(float(b), rel=1e-6)
    for name in of_a:
        np.testing.assert_allclose(of_a[name], of_b[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_what_shares_an_id_with_a_pair_is_left_out():
    """A caption that stands alone and reads as a pair's is no negative of the pair's picture."""
    batch, _ = problem()
    same = dataclasses.replace(batch, caption_id=batch.caption_id.at[9].set(batch.caption_id[2]))
    z, w = batch.anchor.pooled, batch.text.pooled
    l = 5 * np.asarray(z @ w.T, np.float64)  # noqa: E741
    row = l.copy()
    row[2, 9] = -np.inf
    want = -np.diag(l) + (np.log(np.exp(row).sum(1)) + np.log(np.exp(l).sum(0))) / 2
    assert float(loss(same, None)[0]) == pytest.approx(want[:8].mean(), rel=1e-5)


def test_rows_alone_draw_nothing_and_teach_cla_nothing():
    """What stands beside a picture alone, its tokens and ids, changes nothing but the caption's own embedding."""
    batch, bank = problem()
    whole = BNSConfig(enabled=True, k=3, pool=8, drawn_share=0.25, reweight=False), CLAConfig(enabled=True, row_share=1.0, easy=0)
    config = dataclasses.replace(PLAIN, bns=whole[0], cla=whole[1], groups=2)

    def of(batch):
        def value(z, w, y):
            text = dataclasses.replace(batch.text, pooled=w, tokens=y)
            changed = dataclasses.replace(batch, anchor=dataclasses.replace(batch.anchor, pooled=z), text=text)
            return loss(changed, bank, config)[0]

        return jax.value_and_grad(value, (0, 1, 2))(batch.anchor.pooled, batch.text.pooled, batch.text.tokens)

    value, (dz, dw, dy) = of(batch)
    assert np.isfinite(float(value))
    assert all(np.isfinite(np.asarray(g)).all() for g in (dz, dw, dy))
    assert float(jnp.abs(dw[8:]).sum()) > 0
    assert float(jnp.abs(dz[8:]).sum()) > 0
    assert float(jnp.abs(dy[8:]).sum()) == 0.0
    other = dataclasses.replace(batch, text=dataclasses.replace(batch.text, tokens=batch.text.tokens.at[8:].multiply(2.0)))
    assert float(of(other)[0]) == float(value)


@pytest.mark.parametrize("contrast", ["dense", "chunked", "ring"])
def test_equal_on_eight_devices(contrast):
    batch, bank = problem()
    bns, cla = BNSConfig(enabled=True, k=3, pool=8, drawn_share=0.25), CLAConfig(enabled=True, row_share=1.0)
    eight, results = Shards(make_mesh(MeshConfig()), 2), []
    for shards, how in ((ONE_DEVICE, "dense"), (eight, contrast)):
        config = dataclasses.replace(PLAIN, bns=bns, cla=cla, groups=8, contrast=how, tile=2)

        def value(z, w, config=config, shards=shards):
            parts = dataclasses.replace(batch.anchor, pooled=z), dataclasses.replace(batch.text, pooled=w)
            return loss(dataclasses.replace(batch, anchor=parts[0], text=parts[1]), bank, config, shards)[0]

        results.append(jax.value_and_grad(value, (0, 1))(batch.anchor.pooled, batch.text.pooled))
    (one, gradient), (spread, sharded) = results
    np.testing.assert_allclose(one, spread, rtol=1e-5)
    for a, b in zip(gradient, sharded, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(find(batch, bank)), jax.tree.leaves(find(batch, bank, shards=eight)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
