"""The weighted sum: every part adds what it says, switches leave nothing behind, the text negatives come from where they should."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.config import BNSConfig, CLAConfig, ObjectiveConfig
from bacl_jax.objective import bacl, bns, infonce
from bacl_jax.objective import bank as memory
from bacl_jax.objective.bacl import Pairs, bacl_loss, even_rows
from bacl_jax.objective.similarity import cosine, positives
from bacl_jax.schedules import curriculum
from bacl_jax.types import Features

B, D, T, P, M = 12, 8, 6, 9, 20


def unit(x):
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def pairs(seed=0):
    r = np.random.default_rng(seed)
    caption = r.integers(0, 9, B)
    ids = np.stack([[1, 3 + c % 3, 6 + c, 30, 2, 0] for c in caption]).astype(np.int32)
    mask = jnp.asarray(ids > 0)
    return Pairs(
        anchor=Features(pooled=unit(r.normal(size=(B, D))), tokens=jnp.asarray(r.normal(size=(B, P, D)), jnp.float32)),
        text=Features(pooled=unit(r.normal(size=(B, D))), tokens=jnp.asarray(r.normal(size=(B, T, D)), jnp.float32), mask=mask),
        ids=jnp.asarray(ids),
        mask=mask,
        caption_id=jnp.asarray(np.stack([caption, caption], 1), jnp.uint32),
        anchor_id=jnp.asarray(np.stack([np.arange(B)] * 2, 1), jnp.uint32),
    )


def full_bank():
    r = np.random.default_rng(5)
    return dataclasses.replace(
        memory.empty(M, T, D),
        caption_id=jnp.asarray(np.stack([np.arange(M) + 5] * 2, 1), jnp.uint32),
        anchor_id=jnp.asarray(np.stack([np.arange(M) + 500] * 2, 1), jnp.uint32),
        index=jnp.arange(M),
        ids=jnp.tile(jnp.arange(M)[:, None], (1, T)),
        mask=jnp.ones((M, T), bool),
        anchor=unit(r.normal(size=(M, D))),
        text=unit(r.normal(size=(M, D))),
    )


def attend(text, anchor):
    logits = jnp.einsum("nbtd,bpd->nbtp", text.tokens, anchor.tokens)
    return jax.nn.softmax(logits, axis=-1), logits.mean((2, 3))


def encode_text(ids, mask):
    """Embeds bank row m as the m-th unit vector, so that a column tells which row was drawn."""
    return Features(pooled=jax.nn.one_hot(ids[:, 0] % D, D), tokens=jnp.zeros((*ids.shape, D)), mask=mask)


@functools.partial(jax.jit, static_argnames="config")
def loss(config, bank=None):
    return bacl_loss(
        pairs(),
        bank,
        log_scale=jnp.log(jnp.float32(10.0)),
        bias=jnp.float32(-1.0),
        policy=lambda anchor, columns, picked, s, boundary: jnp.zeros_like(s),
        attend=attend,
        encode_text=encode_text,
        key=jax.random.key(0),
        progress=jnp.float32(1.0),
        config=config,
    )


BNS = BNSConfig(enabled=True, k=4, pool=8, reweight=False, drawn_share=0.0)


def test_everything_off_is_the_mean_of_both_directions():
    p = pairs()
    total, metrics = loss(ObjectiveConfig())
    logits, positive = 10 * cosine(p.anchor.pooled, p.text.pooled), positives(p.caption_id, p.anchor_id, p.caption_id, p.anchor_id)
    expected = (infonce.direction(logits, positive).mean() + infonce.direction(logits.T, positive).mean()) / 2
    chex.assert_trees_all_close(total, expected, rtol=1e-5)
    assert set(metrics) == {"loss", "loss_contrast", "loss_floor", "log_batch"}


def test_bns_without_a_channel_leaves_the_contrastive_term():
    total, metrics = loss(ObjectiveConfig(bns=BNS))
    chex.assert_trees_all_close(metrics["loss_contrast"], loss(ObjectiveConfig())[1]["loss_contrast"])
    chex.assert_trees_all_close(total, metrics["loss_contrast"] + metrics["loss_policy"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_each_channel_adds_negatives(kind):
    plain = loss(ObjectiveConfig(kind=kind))[1]["loss_contrast"]
    a = loss(ObjectiveConfig(kind=kind, bns=dataclasses.replace(BNS, reweight=True)))[1]["loss_contrast"]
    b = loss(ObjectiveConfig(kind=kind, bns=dataclasses.replace(BNS, drawn_share=0.5)), bank=full_bank())[1]["loss_contrast"]
    assert float(a) > float(plain)
    assert float(b) > float(plain)


def test_drawn_captions_are_encoded_again_unless_stale():
    bank = full_bank()

    config = ObjectiveConfig(bns=dataclasses.replace(BNS, drawn_share=0.5))
    grad = jax.grad(lambda text: loss(config, bank=dataclasses.replace(bank, text=text))[0])(bank.text)
    assert float(jnp.abs(grad).max()) == 0  # the bank's own embeddings only choose
    stale = loss(ObjectiveConfig(bns=dataclasses.replace(BNS, drawn_share=0.5, stale=True)), bank=bank)[0]
    fresh = loss(ObjectiveConfig(bns=dataclasses.replace(BNS, drawn_share=0.5)), bank=bank)[0]
    assert float(jnp.abs(stale - fresh)) > 1e-4


def test_an_empty_bank_changes_nothing():
    config = ObjectiveConfig(bns=dataclasses.replace(BNS, drawn_share=0.5))
    plain = loss(ObjectiveConfig())[1]["loss_contrast"]
    chex.assert_trees_all_close(loss(config, bank=memory.empty(M, T, D))[1]["loss_contrast"], plain, rtol=1e-6)


def test_cla_adds_its_weighted_terms_and_works_without_bns():
    for sampler in (BNSConfig(), BNS):
        config = ObjectiveConfig(bns=sampler, cla=CLAConfig(enabled=True, row_share=0.5, lambda_local=0.2, lambda_match=0.7))
        total, m = loss(config)
        expected = m["loss_contrast"] + 0.2 * m["loss_local"] + 0.7 * m["loss_match"] + m.get("loss_policy", 0)
        chex.assert_trees_all_close(total, expected, rtol=1e-5)
        assert float(m["loss_match"]) > 0


def sampled(p, config):
    s = cosine(p.anchor.pooled, p.text.pooled)
    zero = lambda anchor, columns, picked, s, boundary: jnp.zeros_like(s)  # noqa: E731
    return s, bacl._sample(p, s, zero, jax.random.fold_in(jax.random.key(0), 0), curriculum(1.0, config.bns), config)


def test_each_direction_is_weighted_by_its_own_draw():
    p, config = pairs(), ObjectiveConfig(bns=dataclasses.replace(BNS, reweight=True))
    s, (image_side, text_side) = sampled(p, config)
    positive = positives(p.caption_id, p.anchor_id, p.caption_id, p.anchor_id)
    rows = infonce.direction(10 * s, positive, weight=bns.weight_matrix(image_side, B, 4))
    columns = infonce.direction(10 * s.T, positive.T, weight=bns.weight_matrix(text_side, B, 4))
    chex.assert_trees_all_close(loss(config)[1]["loss_contrast"], (rows.mean() + columns.mean()) / 2, rtol=1e-5)
    assert float(jnp.abs(bns.weight_matrix(image_side, B, 4) - bns.weight_matrix(text_side, B, 4)).max()) > 0.1


def test_boundary_scores_of_both_sides():
    p = pairs()
    s, (image_side, text_side) = sampled(p, ObjectiveConfig(bns=BNS))
    for scores, side in ((s, image_side), (s.T, text_side)):
        expected = jnp.take_along_axis(scores, side.candidates.column, 1) - jnp.diagonal(s)[:, None]
        chex.assert_trees_all_close(side.candidates.boundary, expected)


def drawn_from_batch(p, config):
    """CLA's negatives as `bacl_loss` chooses them without channel (b)."""
    image_side = sampled(p, config)[1][0]
    return bacl._of_batch(p, *bns.hardest(image_side))


def test_attention_is_asked_for_the_own_caption_the_hardest_negative_and_easy_ones():
    p, config = pairs(), ObjectiveConfig(bns=BNS, cla=CLAConfig(enabled=True, row_share=0.5, easy=2))
    negatives = drawn_from_batch(p, config)
    asked = []

    def spy(text, anchor):
        asked.append((text, anchor))
        return attend(text, anchor)

    bacl.local_terms(p, negatives, spy, config)
    rows = even_rows(B, 0.5)
    negative = bns.hardest(sampled(p, config)[1][0])[0][rows]
    ((text, anchor),) = asked
    chex.assert_trees_all_equal(text.tokens, p.text.tokens[jnp.stack([rows, negative, (rows + 1) % B, (rows + 2) % B])])
    chex.assert_trees_all_equal(anchor.tokens, p.anchor.tokens[rows])
    assert not (rows == negative).any()


def test_captions_drawn_from_the_bank_are_what_attention_compares_with():
    """With channel (b) CLA's negative is the re-encoded caption, whatever share of the rows either of them has."""
    sampler = dataclasses.replace(BNS, drawn_share=0.5)
    for share in (0.25, 1.0):
        config, asked = ObjectiveConfig(bns=sampler, cla=CLAConfig(enabled=True, row_share=share, easy=0)), []

        def spy(text, anchor, asked=asked):
            asked.append((text, anchor))
            return attend(text, anchor)

        p, bank = pairs(), full_bank()
        zero = lambda anchor, columns, picked, s, boundary: jnp.zeros_like(s)  # noqa: E731
        drawn, _, _ = bacl._from_bank(p, bank, zero, encode_text, jax.random.key(1), jnp.float32(-0.5), config)
        bacl.local_terms(p, drawn, spy, config)
        ((text, anchor),) = asked
        n = min(round(share * B), B // 2)
        assert text.tokens.shape[:2] == (2, n)
        pick = even_rows(B // 2, n / (B // 2))
        chex.assert_trees_all_equal(text.pooled[1], drawn.text.pooled[pick])
        chex.assert_trees_all_equal(anchor.tokens, p.anchor.tokens[drawn.rows[pick]])


def test_an_easy_negative_that_is_a_positive_does_not_count():
    p = pairs()
    same = jnp.zeros_like(p.caption_id)  # every caption of the batch is the same one
    p, config = dataclasses.replace(p, caption_id=same), ObjectiveConfig(bns=BNS, cla=CLAConfig(enabled=True, easy=3))
    negatives = dataclasses.replace(drawn_from_batch(p, config), found=jnp.zeros(B, bool))
    seen = bacl.local_terms(p, negatives, lambda text, anchor: (attend(text, anchor)[0], jnp.full(text.tokens.shape[:2], 4.0)), config)[1]
    chex.assert_trees_all_close(seen, jnp.log1p(jnp.exp(-4.0)) / 2, rtol=1e-5)  # the positives alone


@pytest.mark.parametrize("reach", [True, False])
def test_the_local_losses_reach_the_towers_only_by_switch(reach):
    config = ObjectiveConfig(bns=BNS, cla=CLAConfig(enabled=True, row_share=0.5, into_towers=reach))
    p = pairs()

    def local(tokens):
        q = dataclasses.replace(p, anchor=dataclasses.replace(p.anchor, tokens=tokens))
        return sum(bacl.local_terms(q, drawn_from_batch(q, config), attend, config)[:2])

    assert bool(jnp.abs(jax.jit(jax.grad(local))(p.anchor.tokens)).max() > 0) == reach


@pytest.mark.parametrize(("alpha", "harder"), [(-0.5, True), (0.5, False)])
def test_the_schedule_chooses_among_rows_too(alpha, harder):
    """Late in training the captions that are encoded are those of the rows with the most ambiguous draw, early the easiest."""
    p, bank = pairs(), full_bank()
    config = ObjectiveConfig(bns=dataclasses.replace(BNS, drawn_share=0.25, tau_b=1e-4))
    zero = lambda anchor, columns, picked, s, boundary: jnp.zeros_like(s)  # noqa: E731
    fetched, _, drawn = bacl._from_bank(p, bank, zero, encode_text, jax.random.key(1), jnp.float32(alpha), config)
    best = drawn.perturbed.argmax(1)[:, None]
    boundary = np.asarray(jnp.take_along_axis(drawn.candidates.boundary, best, 1)[:, 0])
    order = np.argsort(-boundary if harder else boundary)
    assert set(np.asarray(fetched.rows)) == set(order[: B // 4])


def test_a_drawn_caption_is_no_negative_of_the_rows_that_share_it():
    p, bank, config = pairs(), full_bank(), ObjectiveConfig(bns=dataclasses.replace(BNS, drawn_share=1.0))
    zero = lambda anchor, columns, picked, s, boundary: jnp.zeros_like(s)  # noqa: E731
    fetched, negative, drawn = bacl._from_bank(p, bank, zero, encode_text, jax.random.key(1), jnp.float32(-0.5), config)
    slot = bns.hardest(drawn)[0][fetched.rows]
    shared = positives(p.caption_id, p.anchor_id, bank.caption_id[slot], bank.anchor_id[slot])
    assert bool(shared.any())
    assert (negative == ~shared).all()
    chex.assert_trees_all_equal(fetched.text.pooled, jax.nn.one_hot(slot % D, D))


def test_the_weight_q_carries_no_gradient_into_the_contrastive_term():
    """d L_contrast / d policy = 0: the policy learns from its own loss alone."""
    config = ObjectiveConfig(bns=dataclasses.replace(BNS, reweight=True))

    def contrast(gain):
        return bacl_loss(
            pairs(),
            None,
            log_scale=jnp.float32(2.0),
            bias=None,
            policy=lambda anchor, columns, picked, s, boundary: gain * s,
            attend=attend,
            encode_text=encode_text,
            key=jax.random.key(0),
            progress=jnp.float32(0.5),
            config=config,
        )[1]["loss_contrast"]

    assert float(jax.jit(jax.grad(contrast))(jnp.float32(1.0))) == 0


@pytest.mark.parametrize(
    ("size", "share", "rows"), [(8, 0.5, [0, 2, 4, 6]), (8, 1.0, list(range(8))), (10, 0.4, [0, 2, 5, 7]), (3, 0.01, [0])]
)
def test_even_rows(size, share, rows):
    assert even_rows(size, share).tolist() == rows
