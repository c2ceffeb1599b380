"""One value and one gradient, however the objective is computed: every way x whole or in parts x one device or eight, on tiny arrays.

What the objective chooses is discrete (nearest columns, drawn captions, rows, Omega). So the product runs on data in which no choice
is close (asserted), and a second set of tests lets choices be as close as they like and asks for their regret.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.config import MeshConfig
from bacl_jax.config_objective import BNSConfig, CLAConfig, ObjectiveConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.objective import bacl, bns, cla
from bacl_jax.objective import bank as memory
from bacl_jax.objective.bacl import bacl_loss, encoded
from bacl_jax.objective.pairs import Groups, Pairs
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.objective.similarity import MASKED, Rows, positives, search
from bacl_jax.types import Features

B, D, T, P, M, WORDS, SEED = 32, 8, 6, 9, 40, 24, 1
GAP = 1e-4
KEY, PROGRESS = jax.random.key(0), jnp.float32(0.6)
SAMPLER = BNSConfig(enabled=True, k=3, pool=9, drawn_share=0.5)
ATTENTION = CLAConfig(enabled=True, row_share=0.5, into_towers=True, top=4)
OBJECTIVES = {
    "infonce": ObjectiveConfig(),
    "sigmoid": ObjectiveConfig(kind="sigmoid"),
    "bacl": ObjectiveConfig(bns=SAMPLER, cla=ATTENTION, groups=16),
    "bacl, sigmoid, others masked": ObjectiveConfig(kind="sigmoid", same_id="mask", bns=SAMPLER, cla=ATTENTION, groups=16),
}


@functools.cache
def problem():
    """Inputs of a batch with repeated captions and pictures, a bank that the batch does not divide, parameters of tiny towers."""
    r = np.random.default_rng(SEED)
    f = lambda *shape: jnp.asarray(r.normal(size=shape), jnp.float32)  # noqa: E731
    caption, picture = r.integers(0, 11, B), np.minimum(np.arange(B), B - 3)
    ids = np.stack([[1, 3 + c % 4, 8 + c, 7, 2, 0] for c in caption]).astype(np.int32)
    twice = lambda x: jnp.asarray(np.stack([x, x], 1), jnp.uint32)  # noqa: E731
    batch = {"images": f(B, P, D), "ids": jnp.asarray(ids), "caption_id": twice(caption), "anchor_id": twice(picture)}
    unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    other = r.integers(0, 15, M)
    slots = np.stack([[1, 3 + c % 4, 8 + c, 7, 2, 0] for c in other]).astype(np.int32)
    bank = dataclasses.replace(
        memory.empty(M, T, D),
        caption_id=twice(other),
        anchor_id=twice(np.arange(M) + 10),
        index=jnp.asarray(np.where(np.arange(M) < 37, np.arange(M), -1), jnp.int32),
        ids=jnp.asarray(slots),
        mask=jnp.asarray(slots > 0),
        anchor=unit(f(M, D)),
        text=unit(f(M, D)),
    )
    params = {"image": f(D, D), "text": f(WORDS, D), "policy": 0.3 * f(D, 2), "cross": f(D, D), "log_scale": jnp.float32(1.5)}
    return batch, bank, params | {"bias": jnp.float32(-1.0)}


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def towers(params):
    def image(x):
        tokens = jnp.tanh(x @ params["image"])
        return Features(pooled=unit(tokens.mean(1)), tokens=tokens)

    def text(ids, mask):
        tokens = params["text"][ids]
        return Features(pooled=unit((tokens * mask[..., None]).sum(1)), tokens=tokens, mask=mask)

    def attend(text, anchor):
        logits = jnp.einsum("nbtd,de,bpe->nbtp", text.tokens, params["cross"], anchor.tokens)
        return jax.nn.softmax(logits, axis=-1), logits.mean((2, 3))

    def policy(anchor, columns, pick, s, boundary):
        return jnp.tanh(((anchor @ params["policy"])[:, None] * pick(columns @ params["policy"])).sum(-1) + s)

    return image, text, attend, policy


def as_pairs(params, batch, shards):
    image, text, *_ = towers(params)
    mask = batch["ids"] > 0
    both = lambda part: (image(part[0]), text(*part[1:]))  # noqa: E731
    anchor, words = encoded(both, (batch["images"], batch["ids"], mask), shards)
    kept = {"ids": batch["ids"], "mask": mask, "caption_id": batch["caption_id"], "anchor_id": batch["anchor_id"]}
    return Pairs(anchor=anchor, text=words, inputs=None if shards.parts == 1 else batch["images"], **kept)


def graded(config, shards):
    """loss, metrics, gradients of all parameters, and the bank after the step."""
    batch, bank, params = problem()

    def value(params):
        image, text, attend, policy = towers(params)
        pairs = as_pairs(params, batch, shards)
        loss, metrics = bacl_loss(
            pairs,
            bank,
            log_scale=params["log_scale"],
            bias=params["bias"] if config.kind == "sigmoid" else None,
            policy=policy,
            attend=attend,
            encode_text=text,
            encode_anchor=image,
            key=KEY,
            progress=PROGRESS,
            config=config,
            shards=shards,
        )
        rows = {"ids": pairs.ids, "mask": pairs.mask, "caption_id": pairs.caption_id, "anchor_id": pairs.anchor_id}
        rows |= {"anchor": pairs.anchor.pooled, "text": pairs.text.pooled, "index": jnp.arange(B)}
        return loss, (metrics, memory.push(bank, write=jnp.bool_(True), shards=shards, **rows))

    (loss, rest), grads = jax.jit(jax.value_and_grad(value, has_aux=True))(params)
    return jax.device_get((loss, *rest, grads))


@functools.cache
def expected(name):
    return graded(dataclasses.replace(OBJECTIVES[name], contrast="dense"), ONE_DEVICE)


def layout(shape, parts, tile=4):
    return Shards(make_mesh(MeshConfig(*shape)) if shape else None, tile, parts)


@pytest.mark.parametrize("shape", [None, (8, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("how", ["dense", "chunked", "ring"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_way_gives_one_loss_one_gradient_and_one_bank(name, how, parts, shape):
    found = graded(dataclasses.replace(OBJECTIVES[name], contrast=how), layout(shape, parts))
    assert set(found[1]) == set(expected(name)[1])
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected(name)), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + 1e-7, jax.tree_util.keystr(path)


def gap(values, k):
    """How far the k-th largest of each row is from the next."""
    ordered = -np.sort(-np.asarray(values, np.float64), axis=-1)
    return (ordered[..., k - 1] - ordered[..., k]).min() if ordered.shape[-1] > k else np.inf


def test_no_choice_of_the_product_is_close():
    """Nearest columns, the drawn candidate, the rows that are encoded, Omega: the last chosen and the first left out differ by > 1e-4."""
    batch, bank, params = problem()
    config, (_, text, attend, policy) = OBJECTIVES["bacl"], towers(params)
    pairs, groups = as_pairs(params, batch, ONE_DEVICE), Groups.of(B, 16, ONE_DEVICE)
    for query, columns in ((pairs.anchors(), pairs.texts()), (pairs.texts(), pairs.anchors()), (pairs.anchors(), bank.texts())):
        s = jnp.where(~positives(query, columns) & columns.valid[None], query.x @ columns.x.T, MASKED)
        assert gap(s, SAMPLER.k) > GAP
    own = (pairs.anchor.pooled * pairs.text.pooled).sum(-1)
    alpha = bacl.curriculum(PROGRESS, SAMPLER)
    negatives, drawn = bacl.from_bank(pairs, own, bank, policy, text, jax.random.fold_in(KEY, 1), alpha, groups, config)
    assert gap(drawn.perturbed, 1) > GAP
    assert gap(drawn.perturbed.max(1).reshape(groups.count, groups.rows), 1) > GAP
    for draw in (drawn, *bacl._sample(pairs, own, policy, jax.random.fold_in(KEY, 0), alpha, config, ONE_DEVICE)):
        assert gap(draw.perturbed, 1) > GAP
    rows = np.asarray(groups.rows * np.arange(groups.count) + np.asarray(negatives.place[:, 0]))
    other = text(negatives.captions.ids, negatives.captions.mask)
    mine = jax.tree.map(lambda x: x[rows], pairs)
    attention, _ = attend(jax.tree.map(lambda *x: jnp.stack(x), mine.text, other), mine.anchor)
    captions = (mine.ids, mine.mask, attention[0]), (negatives.captions.ids, other.mask, attention[1])
    a, b, compared, aligned = cla.aligned_attention(*captions[0], *captions[1])
    difference = np.where(np.asarray(compared)[..., None], np.abs(np.asarray(a - b)), -1)[np.asarray(aligned)]
    assert len(difference) > 4
    assert gap(difference.reshape(len(difference), -1), ATTENTION.top) > GAP


def close_ones(seed):
    """Columns in pairs that no float32 product can tell apart, so that another order of sums chooses another one."""
    r = np.random.default_rng(seed)
    half = r.normal(size=(M, D))
    x = np.concatenate([half, half + 1e-7 * r.normal(size=half.shape)])
    ids = lambda start, n: jnp.asarray(np.stack([np.arange(n) + start] * 2, 1), jnp.uint32)  # noqa: E731
    query = Rows(
        x=unit(jnp.asarray(r.normal(size=(B, D)), jnp.float32)), caption_id=ids(0, B), anchor_id=ids(0, B), valid=jnp.ones(B, bool)
    )
    columns = Rows(
        x=unit(jnp.asarray(x, jnp.float32)), caption_id=ids(99, 2 * M), anchor_id=ids(99, 2 * M), valid=jnp.asarray(r.random(2 * M) < 0.9)
    )
    return query, columns


@pytest.mark.parametrize("shape", [None, (8, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("tile", [3, 1024])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_found_among_close_columns_has_no_regret(seed, tile, shape):
    query, columns = close_ones(seed)
    shards = Shards(make_mesh(MeshConfig(*shape)) if shape else None, tile)
    k = 5  # odd: the last place falls on a pair of equals
    found = jax.jit(functools.partial(search, k=k, shards=shards))(query, columns, jnp.zeros((B, 0), jnp.int32))
    s = np.asarray(query.x, np.float64) @ np.asarray(columns.x, np.float64).T
    s = np.where(np.asarray(columns.valid), s, -9)
    chosen = np.take_along_axis(s, np.asarray(found.column), 1)
    assert all(len(set(row)) == k for row in np.asarray(found.column).tolist())
    assert (-np.sort(-s, axis=1)[:, :k] - -np.sort(-chosen, axis=1)).max() <= 1e-5


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_a_draw_among_close_candidates_has_no_regret(shape):
    """The caption drawn on eight devices is as good, by one device's scores, as the one drawn there."""
    query, columns = close_ones(2)
    config, own = BNSConfig(enabled=True, k=5, pool=12), jnp.zeros(B)
    keys = bns.row_keys(KEY, jnp.arange(B))

    def drawn(shards):
        flat = lambda anchor, columns, pick, s, boundary: jnp.zeros_like(s)  # noqa: E731
        return bns.sample(query, columns, own, flat, keys, alpha=jnp.float32(-0.5), config=config, shards=shards)

    one = jax.jit(functools.partial(drawn, ONE_DEVICE))()
    other = jax.jit(functools.partial(drawn, layout(shape, 1)))()
    regret = np.abs(np.asarray(one.perturbed.max(1)) - np.asarray(other.perturbed.max(1)))
    assert (regret * config.tau_b / 0.5).max() <= 1e-5  # in units of the similarity
