"""The weighted sum: every part adds what it says, switches leave nothing behind, the text negatives come from where they should."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.config import MeshConfig
from bacl_jax.config_objective import BNSConfig, CLAConfig, ObjectiveConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.objective import bacl, bns
from bacl_jax.objective import bank as memory
from bacl_jax.objective.bacl import bacl_loss
from bacl_jax.objective.pairs import Groups, Pairs, even_rows
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.objective.similarity import cosine, positives
from bacl_jax.objective.tile import scatter
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
        policy=lambda anchor, columns, pick, s, boundary: jnp.zeros_like(s),
        attend=attend,
        encode_text=encode_text,
        key=jax.random.key(0),
        progress=jnp.float32(1.0),
        config=config,
    )


WHOLE = Groups.of(B, 1, ONE_DEVICE)
BNS = BNSConfig(enabled=True, k=4, pool=8, reweight=False, drawn_share=0.0)


def direction(logits, positive, weight=0.0):
    """InfoNCE of every row, as the equation has it."""
    attraction = jnp.where(positive, logits, 0).sum(1) / positive.sum(1)
    return jax.nn.logsumexp(logits + jnp.log1p(weight), axis=1) - attraction


def test_everything_off_is_the_mean_of_both_directions():
    p = pairs()
    total, metrics = loss(ObjectiveConfig())
    logits, positive = 10 * cosine(p.anchor.pooled, p.text.pooled), positives(p, p)
    expected = (direction(logits, positive).mean() + direction(logits.T, positive).mean()) / 2
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


def zero(anchor, columns, pick, s, boundary):
    return jnp.zeros_like(s)


def sampled(p, config):
    own, key = (p.anchor.pooled * p.text.pooled).sum(1), jax.random.fold_in(jax.random.key(0), 0)
    return bacl._sample(p, own, zero, key, curriculum(1.0, config.bns), config, ONE_DEVICE)


def test_each_direction_is_weighted_by_its_own_draw():
    p, config = pairs(), ObjectiveConfig(bns=dataclasses.replace(BNS, reweight=True))
    s, positive = cosine(p.anchor.pooled, p.text.pooled), positives(p, p)
    of_images, of_texts = (scatter(side.candidates.column, 4 * side.q, 0, B) for side in sampled(p, config))
    rows, columns = direction(10 * s, positive, of_images), direction(10 * s.T, positive.T, of_texts)
    chex.assert_trees_all_close(loss(config)[1]["loss_contrast"], (rows.mean() + columns.mean()) / 2, rtol=1e-5)
    assert float(jnp.abs(of_images - of_texts).max()) > 0.1


def test_boundary_scores_of_both_sides():
    p = pairs()
    s = cosine(p.anchor.pooled, p.text.pooled)
    for scores, side in zip((s, s.T), sampled(p, ObjectiveConfig(bns=BNS)), strict=True):
        c = side.candidates
        expected = jnp.take_along_axis(scores, c.column, 1) - jnp.diagonal(s)[:, None]
        chex.assert_trees_all_close(c.boundary, jnp.where(c.valid, expected, 0), atol=1e-6)


def drawn_from_batch(p, config):
    """CLA's negatives as `bacl_loss` chooses them without channel (b)."""
    return bacl.from_batch(p, *bns.hardest(sampled(p, config)[0]), WHOLE, config)


def drawn_from_bank(p, bank, alpha, config, groups=WHOLE):
    own = (p.anchor.pooled * p.text.pooled).sum(1)
    return bacl.from_bank(p, own, bank, zero, encode_text, jax.random.key(1), jnp.float32(alpha), groups, config)


def asked_of_attention(p, negatives, groups, config, encode=encode_text):
    """(texts, anchors) that attention is asked for."""
    asked = []

    def spy(text, anchor):
        asked.append((text, anchor))
        return attend(text, anchor)

    bacl.local_terms(p, negatives, spy, encode, None, groups, config)
    return asked[0]


@pytest.mark.parametrize("groups", [1, 3])
def test_attention_is_asked_for_the_own_caption_the_hardest_negative_and_easy_ones(groups):
    p, config = pairs(), ObjectiveConfig(bns=BNS, cla=CLAConfig(enabled=True, row_share=0.5, easy=2))
    column, found = bns.hardest(sampled(p, config)[0])
    parts, seen = Groups.of(B, groups, ONE_DEVICE), []

    def encode(ids, mask):
        seen.append(ids)
        return Features(pooled=jnp.zeros((ids.shape[0], D)), tokens=jnp.full((*ids.shape, D), 7.0), mask=mask)

    negatives = bacl.from_batch(p, column, found, parts, config)
    text, anchor = asked_of_attention(p, negatives, parts, config, encode)
    size = B // groups
    rows = jnp.concatenate([g * size + even_rows(size, size // 2) for g in range(groups)])
    easy = [rows // size * size + (rows % size + n) % size for n in (1, 2)]
    chex.assert_trees_all_equal(seen[0], p.ids[column[rows]])
    chex.assert_trees_all_equal(text.tokens[0], p.text.tokens[rows])
    assert (text.tokens[1] == 7.0).all()
    chex.assert_trees_all_equal(text.tokens[2:], p.text.tokens[jnp.stack(easy)])
    chex.assert_trees_all_equal(anchor.tokens, p.anchor.tokens[rows])
    assert not (rows == column[rows]).any()


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("groups", [1, 2])
def test_captions_drawn_from_the_bank_are_what_attention_compares_with(share, groups):
    """With channel (b) CLA's negative is the re-encoded caption, whatever share of the rows either of them has."""
    sampler = dataclasses.replace(BNS, drawn_share=0.5)
    config = ObjectiveConfig(bns=sampler, cla=CLAConfig(enabled=True, row_share=share, easy=0))
    p, bank, parts = pairs(), full_bank(), Groups.of(B, groups, ONE_DEVICE)
    drawn, _ = drawn_from_bank(p, bank, -0.5, config, parts)
    text, anchor = asked_of_attention(p, drawn, parts, config)
    have = B // 2 // groups
    n = min(round(share * B / groups), have)
    assert text.tokens.shape[:2] == (2, n * groups)
    pick = even_rows(have, n)
    chosen = jnp.concatenate([g * have + pick for g in range(groups)])
    chex.assert_trees_all_equal(text.pooled[1], drawn.captions.text.pooled[chosen])
    rows = jnp.concatenate([g * (B // groups) + drawn.place[g, pick] for g in range(groups)])
    chex.assert_trees_all_equal(anchor.tokens, p.anchor.tokens[rows])


def test_an_easy_negative_that_is_a_positive_does_not_count():
    p = pairs()
    same = jnp.zeros_like(p.caption_id)  # every caption of the batch is the same one
    p, config = dataclasses.replace(p, caption_id=same), ObjectiveConfig(bns=BNS, cla=CLAConfig(enabled=True, easy=3))
    negatives = drawn_from_batch(p, config)
    assert not negatives.columns.valid.any()
    four = lambda text, anchor: (attend(text, anchor)[0], jnp.full(text.tokens.shape[:2], 4.0))  # noqa: E731
    seen = bacl.local_terms(p, negatives, four, encode_text, None, WHOLE, config)[1]
    chex.assert_trees_all_close(seen, jnp.log1p(jnp.exp(-4.0)) / 2, rtol=1e-5)  # the positives alone


@pytest.mark.parametrize("reach", [True, False])
def test_the_local_losses_reach_the_towers_only_by_switch(reach):
    config = ObjectiveConfig(bns=BNS, cla=CLAConfig(enabled=True, row_share=0.5, into_towers=reach))
    p = pairs()

    def local(tokens):
        q = dataclasses.replace(p, anchor=dataclasses.replace(p.anchor, tokens=tokens))
        return sum(bacl.local_terms(q, drawn_from_batch(q, config), attend, encode_text, None, WHOLE, config)[:2])

    assert bool(jnp.abs(jax.jit(jax.grad(local))(p.anchor.tokens)).max() > 0) == reach


@pytest.mark.parametrize(("alpha", "harder"), [(-0.5, True), (0.5, False)])
def test_the_schedule_chooses_among_rows_too(alpha, harder):
    """Late in training the captions that are encoded are those of the rows with the most ambiguous draw, early the easiest."""
    config = ObjectiveConfig(bns=dataclasses.replace(BNS, drawn_share=0.25, tau_b=1e-4))
    fetched, drawn = drawn_from_bank(pairs(), full_bank(), alpha, config)
    best = drawn.perturbed.argmax(1)[:, None]
    boundary = np.asarray(jnp.take_along_axis(drawn.candidates.boundary, best, 1)[:, 0])
    order = np.argsort(-boundary if harder else boundary)
    assert set(np.asarray(fetched.place[0])) == set(order[: B // 4])


def test_a_drawn_caption_is_no_negative_of_the_rows_that_share_it():
    p, bank, config = pairs(), full_bank(), ObjectiveConfig(bns=dataclasses.replace(BNS, drawn_share=1.0))
    fetched, drawn = drawn_from_bank(p, bank, -0.5, config)
    slot = bns.hardest(drawn)[0][fetched.place[0]]
    for column in (fetched.columns.caption_id, fetched.columns.anchor_id):
        assert column.shape == (B, 2)
    chex.assert_trees_all_equal(fetched.columns.caption_id, bank.caption_id[slot])
    chex.assert_trees_all_equal(fetched.columns.anchor_id, bank.anchor_id[slot])
    chex.assert_trees_all_equal(fetched.columns.x, jax.nn.one_hot(slot % D, D))
    assert bool(positives(p, fetched.columns).any())
    own = positives(p, fetched.columns)[fetched.place[0], jnp.arange(B)]
    assert not (own & fetched.columns.valid).any()  # no row draws its own caption


@pytest.mark.parametrize("into_towers", [True, False])
def test_token_features_that_are_not_kept_are_encoded_again_part_by_part(into_towers):
    sampler = dataclasses.replace(BNS, drawn_share=0.5)
    cla = CLAConfig(enabled=True, row_share=0.5, into_towers=into_towers)
    config, bank, p = ObjectiveConfig(bns=sampler, cla=cla, groups=3), full_bank(), pairs()

    def value(weight, parts):
        def text(ids, mask):
            x = weight * jax.nn.one_hot(ids % D, D)
            return Features(pooled=x[:, 0], tokens=x, mask=mask)

        def anchor(x):
            return Features(pooled=p.anchor.pooled, tokens=weight * x)

        shards = Shards(parts=parts)
        inputs = (p.anchor.tokens, p.ids, p.mask)
        towers = lambda part: (Features(pooled=part[0].mean(1) * weight, tokens=weight * part[0]), text(*part[1:]))  # noqa: E731
        image, words = bacl.encoded(towers, inputs, shards)
        q = dataclasses.replace(p, anchor=image, text=words, inputs=p.anchor.tokens)
        return bacl_loss(
            q,
            bank,
            log_scale=jnp.log(weight + 3),
            bias=None,
            policy=zero,
            attend=attend,
            encode_text=text,
            encode_anchor=anchor,
            key=jax.random.key(0),
            progress=jnp.float32(1.0),
            config=config,
            shards=shards,
        )[0]

    whole = jax.jit(jax.value_and_grad(functools.partial(value, parts=1)))(jnp.float32(0.5))
    parts = jax.jit(jax.value_and_grad(functools.partial(value, parts=3)))(jnp.float32(0.5))
    chex.assert_trees_all_close(parts, whole, rtol=1e-5)


def test_every_caption_counts_once_among_the_columns():
    p, bank = pairs(), full_bank()
    assert int(p.texts().valid.sum()) == len(set(p.caption_id[:, 0].tolist())) < B
    assert p.anchors().valid.all()
    twice = dataclasses.replace(bank, caption_id=bank.caption_id.at[3].set(bank.caption_id[7]), index=bank.index.at[1].set(-1))
    assert np.flatnonzero(~np.asarray(twice.texts().valid)).tolist() == [1, 3]


def test_the_draw_in_the_log_is_that_of_the_anchors():
    metrics = loss(ObjectiveConfig(bns=BNS))[1]
    image_side, text_side = (bns.diagnostics(side, BNS)["bs_drawn"] for side in sampled(pairs(), ObjectiveConfig(bns=BNS)))
    assert float(metrics["bs_drawn"]) == pytest.approx(float(image_side), rel=1e-4)
    assert float(image_side) != pytest.approx(float(text_side), rel=1e-2)


def test_the_weight_q_carries_no_gradient_into_the_contrastive_term():
    """d L_contrast / d policy = 0: the policy learns from its own loss alone."""
    config = ObjectiveConfig(bns=dataclasses.replace(BNS, reweight=True))

    def contrast(gain):
        return bacl_loss(
            pairs(),
            None,
            log_scale=jnp.float32(2.0),
            bias=None,
            policy=lambda anchor, columns, pick, s, boundary: gain * s,
            attend=attend,
            encode_text=encode_text,
            key=jax.random.key(0),
            progress=jnp.float32(0.5),
            config=config,
        )[1]["loss_contrast"]

    assert float(jax.jit(jax.grad(contrast))(jnp.float32(1.0))) == 0


@pytest.mark.parametrize(("size", "count", "rows"), [(8, 4, [0, 2, 4, 6]), (8, 8, list(range(8))), (10, 4, [0, 2, 5, 7]), (3, 1, [0])])
def test_even_rows(size, count, rows):
    assert even_rows(size, count).tolist() == rows


def test_groups_are_a_multiple_of_the_devices_and_divide_the_batch():
    eight = Shards(make_mesh(MeshConfig()))
    assert Groups.of(48, 3, eight) == Groups(24, 2)
    assert Groups.of(48, 16, eight) == Groups(16, 3)
    with pytest.raises(ValueError, match=r"a batch of 40 does not divide into 24 groups .* take train.batch_size 24 or 48"):
        Groups.of(40, 3, eight)
    two = Groups(2, 4)
    assert [two.share(x) for x in (0.01, 0.5, 1.0)] == [1, 2, 4]
    assert two.share(1.0, of=2) == 2
    x = jnp.arange(8) * 10
    assert two.take(x, jnp.asarray([[1, 3], [0, 2]])).tolist() == [10, 30, 40, 60]
