"""The spectral warm start: numpy's SVD, however the rows come and lie; far above random heads; once a run; refused where it cannot be."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bacl_jax import paths
from bacl_jax.config import ConfigError, DataConfig, MeshConfig, OptimConfig, SpectralConfig, from_config_dict, to_dict
from bacl_jax.config_model import VisionConfig
from bacl_jax.config_objective import MMCLConfig
from bacl_jax.data import Tokenizer, batches, synthetic
from bacl_jax.data.source import hash_ids
from bacl_jax.mesh import make_mesh
from bacl_jax.objective import mmcl
from bacl_jax.train import precompute, spectral
from bacl_jax.train.checkpoint import Checkpoints, Position
from bacl_jax.train.step import build
from bacl_jax.types import Batch
from launch.session import Run

F, G, D = 12, 9, 6
STILL = {"augment_scale": 0.0, "augment_shift": 0.0}
TRUNKS = ("towers/(image|text)/(?!head/).*",)


def features(n, seed=0):
    """Of n pairs that share six directions, with means and unequal variances."""
    r, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    shared = r.normal(size=(n, D)) * np.linspace(2, 0.5, D)[None]
    sides = [(shared @ fixed.normal(size=(D, f)) + 0.3 * r.normal(size=(n, f)) + 2 * fixed.normal(size=(1, f))) for f in (F, G)]
    return [side.astype(np.float32) for side in sides]


def moments(x, y, size):
    total = spectral.no_moments(F, G)
    for at in range(0, len(x), size):
        total = spectral.add(total, jnp.asarray(x[at : at + size]), jnp.asarray(y[at : at + size]))
    return total


def centred(x):
    return x.astype(float) - x.astype(float).mean(0)[None]


@pytest.mark.parametrize("size", [192, 48])
def test_moments_of_several_batches_are_those_of_one(size):
    x, y = features(192)
    found, cx, cy = moments(x, y, size), centred(x), centred(y)
    for name, expected in {"xx": cx.T @ cx, "yy": cy.T @ cy, "xy": cx.T @ cy, "x_mean": x.mean(0), "y_mean": y.mean(0)}.items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-4, atol=2e-3)
    assert float(found.rows) == 192


def test_a_large_mean_does_not_drown_the_covariance():
    """A difference of sums of squares near 2e8, in float32, would be wrong by more than the covariances are."""
    x, y = features(192)
    found = moments(x + 1000, y - 1000, 48)
    np.testing.assert_allclose(found.xy, centred(x).T @ centred(y), rtol=2e-3, atol=0.5)


def two_sides(x, y, ridge, *, bias=False, dim=D):
    """Both sides with random heads, and the cross-covariance."""
    r, sides = np.random.default_rng(5), []
    for a in (x, y):
        head = {"kernel": r.normal(size=(a.shape[1], dim)).astype(np.float32)} | ({"bias": np.zeros(dim, np.float32)} if bias else {})
        sides.append(spectral.side(head, a.astype(float).mean(0), centred(a).T @ centred(a) / len(a), ridge))
    return sides, centred(x).T @ centred(y) / len(x)


def solved(cross, sides):
    return spectral.solve(spectral.in_coordinates(cross, *sides), *sides)


def test_without_whitening_the_heads_are_the_svd():
    """With biases no direction is left out: the kernels' product is the truncated SVD, up to a factor, and the mean's embedding is 0."""
    x, y = features(400)
    sides, cross = two_sides(x, y, None, bias=True, dim=4)
    a, b, rank = solved(cross, sides)
    u, s, vt = np.linalg.svd(cross)
    expected = u[:, :4] * s[None, :4] @ vt[:4]
    product = a["kernel"] @ b["kernel"].T
    np.testing.assert_allclose(product / np.linalg.norm(product), expected / np.linalg.norm(expected), atol=1e-6)
    assert rank == 4
    np.testing.assert_allclose(x.mean(0) @ a["kernel"] + a["bias"], 0, atol=1e-5)


def test_whitened_the_embeddings_have_the_canonical_correlations():
    """Those of QR and SVD (Bjoerck and Golub, 1973); the embeddings of one side are uncorrelated."""
    x, y = features(400)
    sides, cross = two_sides(x, y, 1e-9, bias=True, dim=4)
    a, b, _ = solved(cross, sides)
    z, w = x @ a["kernel"] + a["bias"], y @ b["kernel"] + b["bias"]
    np.testing.assert_allclose(np.corrcoef(z.T), np.eye(4), atol=1e-4)
    canonical = np.linalg.svd(np.linalg.qr(centred(x))[0].T @ np.linalg.qr(centred(y))[0], compute_uv=False)[:4]
    np.testing.assert_allclose([np.corrcoef(z[:, i], w[:, i])[0, 1] for i in range(4)], canonical, atol=1e-4)


@pytest.mark.parametrize("ridge", [None, 0.1])
def test_a_head_without_a_bias_does_not_see_the_mean(ridge):
    pair = features(400)
    sides, cross = two_sides(*pair, ridge)
    *heads, _ = solved(cross, sides)
    for x, head, side in zip(pair, heads, sides, strict=True):
        assert set(head) == {"kernel"}
        assert np.abs(x.mean(0) @ head["kernel"]).max() < 1e-5 * np.abs(x @ head["kernel"]).max()
        np.testing.assert_allclose(np.linalg.norm(head["kernel"]), np.linalg.norm(side.head["kernel"]), rtol=1e-5)


def test_dimensions_past_the_rank_are_small_and_not_zero():
    """Zero on both sides they would have no gradient, ever."""
    sides, cross = two_sides(*features(400), 0.1, dim=16)
    *heads, rank = solved(cross, sides)
    assert rank == G - 1  # the direction of the mean is left out
    for head in heads:
        norms = np.linalg.norm(head["kernel"], axis=0)
        assert (norms[rank:] > 0).all()
        assert norms[rank:].max() < norms[0]


def test_rows_without_covariance_are_refused():
    sides, cross = two_sides(*features(50), 0.1)
    with pytest.raises(ConfigError, match="have no covariance"):
        solved(np.zeros_like(cross), sides)


def batch_of(captions):
    ids = {"caption_id": hash_ids(captions), "anchor_id": hash_ids(map(str, range(len(captions))))}
    return Batch(inputs={}, present={}, index=np.arange(len(captions), dtype=np.int32), **ids)


def test_a_round_has_the_weights_of_infonce_and_no_false_negatives(monkeypatch):
    """Against numpy, in two groups; rows 0 and 2 have one caption, so that neither pushes the other."""
    monkeypatch.setattr(spectral, "GROUP", 4)
    x, y = features(8)
    heads, means = tuple(side.head for side in two_sides(x, y, 0.1)[0]), (x.mean(0), y.mean(0))
    found = spectral.weighted(heads, *jax.tree.map(jnp.asarray, (means, x, y)), batch_of(list("abacdefg")), mmcl.infonce(), 7.0)
    lengths = [np.linalg.norm(a @ head["kernel"], axis=1, keepdims=True) for a, head in zip((x, y), heads, strict=True)]
    z, w = (a @ head["kernel"] / length for a, head, length in zip((x, y), heads, lengths, strict=True))
    expected = np.zeros((F, G))
    for rows in (slice(0, 4), slice(4, 8)):
        s = 7 * z[rows] @ w[rows].T
        if rows.start == 0:
            s[0, 2] = s[2, 0] = -np.inf
        beta = sum((np.eye(4) - np.exp(s) / np.exp(s).sum(axis, keepdims=True)) / 2 for axis in (0, 1))
        a, b = ((c - mean[None]) / length for c, mean, length in zip((x, y), means, lengths, strict=True))
        expected += a[rows].T @ beta @ b[rows] / 8
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("n", "sizes"), [(7, (4, 3)), (11, (4, 4, 3)), (9, (3, 3, 3)), (5, (3, 2))])
def test_the_linear_form_in_groups_of_any_batch(monkeypatch, n, sizes):
    """Against numpy: the mean over i of (x_i - x_j)(y_i - y_j)^T / 2 over the negatives j; rows 0 and 1 are none of each other."""
    monkeypatch.setattr(spectral, "GROUP", 4)
    x, y = features(n)
    heads, means = tuple(side.head for side in two_sides(x, y, 0.1)[0]), (x.mean(0), y.mean(0))
    found = spectral.weighted(heads, *jax.tree.map(jnp.asarray, (means, x, y)), batch_of(list("aacdefghijk")[:n]), mmcl.linear(), 7.0)
    a, b = (
        (c - mean) / np.linalg.norm(c @ head["kernel"], axis=1, keepdims=True) for c, mean, head in zip((x, y), means, heads, strict=True)
    )
    expected, first = np.zeros((F, G)), 0
    for size in sizes:
        for i, j in itertools.permutations(range(first, first + size), 2):
            if {i, j} != {0, 1}:
                expected += np.outer(a[i] - a[j], b[i] - b[j]) / 2 / (size - 1) / n
        first += size
    assert first == n
    np.testing.assert_allclose(found, expected, atol=1e-4)


def config(mesh=None, frozen=TRUNKS, mmcl_form=None, **fields):
    """InfoNCE, or a form of MMCL's loss, of 16 pairs; a ViT and a transformer of one block each."""
    base = tiny.plain(groups=16)
    objective = base.objective if mmcl_form is None else dataclasses.replace(base.objective, kind="mmcl", same_id="mask", mmcl=mmcl_form)
    return dataclasses.replace(
        base,
        objective=objective,
        data=DataConfig(image_size=16, context_length=8, threads=1, prefetch=1, **STILL),
        model=dataclasses.replace(base.model, image=VisionConfig(kind="vit", width=16, depth=1, heads=2, patch=4)),
        optim=OptimConfig(frozen=frozen, warmup_steps=0, ema_decay=0.9, spectral=SpectralConfig(enabled=True, **fields)),
        mesh=mesh or base.mesh,
    )


@functools.cache
def dataset():
    return synthetic.load(DataConfig(image_size=16))


@functools.cache
def tokenizer():
    return Tokenizer.train(dataset().captions, config().data)


@functools.cache
def trainer(rounds, *, stored=False, mesh=None, mmcl_form=None):
    c = config(mesh, mmcl_form=mmcl_form, rounds=rounds)
    towers = dict.fromkeys(("image", "text") if stored else (), "float32")
    return build(c, tokenizer().vocab_size, tiny.one_device() if mesh is None else make_mesh(mesh), towers)


def begun(t, stored=None):
    read = functools.partial(batches, dataset(), tokenizer(), t.config, start_step=0, stored=stored)
    return spectral.warm_start(t, t.init(0), read, len(dataset().train))


def product(params):
    image, text = (np.asarray(params["towers"][name]["head"]["kernel"]) for name in spectral.TOWERS)
    return image @ text.T / np.linalg.norm(image @ text.T)


def of_all_features(t, fresh):
    """What the trunks pool of all rows, both sides, and (features, batch) of each batch."""
    pooled = jax.jit(functools.partial(spectral.pooled, t.model))
    read = itertools.islice(batches(dataset(), tokenizer(), t.config, start_step=0), 14)
    each = [(pooled(fresh.params, batch), batch) for _, batch in read]
    x, y = (np.concatenate(parts) for parts in zip(*(pair for pair, _ in each), strict=True))
    old = [jax.tree.map(np.asarray, fresh.params["towers"][name]["head"]) for name in spectral.TOWERS]
    sides = [
        spectral.side(head, a.astype(float).mean(0), centred(a).T @ centred(a) / len(a), 0.01) for head, a in zip(old, (x, y), strict=True)
    ]
    return (x, y), sides, each


def test_it_is_what_numpy_makes_of_all_features(capsys):
    t = trainer(0)
    state, fresh = begun(t), t.init(0)
    said = "SVD of the cross-covariance: 224 pairs, 0 power steps, 14 of 16 dimensions"  # two are lost: to the layer norm, and to the mean
    assert said in capsys.readouterr().out
    (x, y), sides, _ = of_all_features(t, fresh)
    image, text, _ = solved(centred(x).T @ centred(y), sides)
    expected = {"towers": {"image": {"head": image}, "text": {"head": text}}}
    np.testing.assert_allclose(product(state.params), product(expected), atol=2e-3)
    for (path, a), b in zip(paths.named(state.params), jax.tree.leaves(fresh.params), strict=True):
        assert np.array_equal(a, b) != (path.split("/")[2:] == ["head", "kernel"]), path
    np.testing.assert_array_equal(product(t.eval_params(state)), product(state.params))  # the average begins there, too


@pytest.mark.parametrize("form", [None, MMCLConfig(form="ramp", tau=2.0)])
def test_a_power_step_adds_the_cross_covariance_with_the_losss_weights(form):
    """Those of `weighted`, under the heads of the first pass, over all batches; and it changes the heads."""
    t, losss = trainer(1, mmcl_form=form), mmcl.infonce() if form is None else mmcl.ramp(2.0)
    fresh = t.init(0)
    (x, y), sides, each = of_all_features(t, fresh)
    first = spectral.in_coordinates(centred(x).T @ centred(y), *sides)
    image, text, _ = spectral.solve(first, *sides)
    means, scale = (x.mean(0), y.mean(0)), t.config.objective.init_scale
    weigh = jax.jit(functools.partial(spectral.weighted, form=losss, scale=scale))
    cross = sum(np.asarray(weigh((image, text), means, *pair, batch), float) for pair, batch in each)
    second = spectral.solve(first + spectral.in_coordinates(cross, *sides), *sides)[:2]
    without, expected = (
        product({"towers": {name: {"head": head} for name, head in zip(spectral.TOWERS, heads, strict=True)}})
        for heads in ((image, text), second)
    )
    np.testing.assert_allclose(product(begun(t).params), expected, atol=2e-3)
    assert np.abs(expected - without).max() > 0.02


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    t = trainer(1)
    where = tmp_path_factory.mktemp("features")
    precompute.write(t, t.init(0).params, dataset(), tokenizer(), where, dtype="float32")
    with_features = dataclasses.replace(t.config, data=dataclasses.replace(t.config.data, features=str(where)))
    return precompute.opened(with_features, dataset(), tokenizer())


def test_stored_features_and_eight_devices_give_the_same_heads(stored):
    whole = product(begun(trainer(1)).params)
    np.testing.assert_allclose(product(begun(trainer(1, stored=True), stored).params), whole, atol=2e-3)
    spread = trainer(1, mesh=MeshConfig(2, 2, 2, fsdp_floor=64))
    np.testing.assert_allclose(product(begun(spread).params), whole, atol=2e-3)


def test_no_array_grows_with_the_rows(stored, monkeypatch):
    """What a pass keeps between two batches are sums of F and G alone, and every batch is one of the run's."""
    kept, block = [], jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: kept.append([leaf.shape for leaf in jax.tree.leaves(tree)]) or block(tree))
    begun(trainer(1, stored=True), stored)
    assert len(kept) == 2 * math.ceil(len(dataset().train) / 16)
    assert {shape for shapes in kept for shape in shapes} == {(), (16,), (16, 16)}


def recall(t, params):
    """R@1 of held-out pictures among held-out captions, in percent (ties are misses), and how many captions there are."""
    split = dataset().splits["test"]
    captions, own = np.unique(split.caption, return_inverse=True)
    z = t.encode_image(params, np.stack([_picture(split.source[i].image) for i in range(len(own))])).pooled
    ids, mask = tokenizer().encode([dataset().captions[i] for i in captions])
    s = np.asarray(z @ t.encode_text(params, ids, mask).pooled.T)
    return 100 * np.mean((s >= s[np.arange(len(s)), own][:, None]).sum(1) == 1), len(captions)


def _picture(image):
    return image.reshape(16, 2, 16, 2, 3).mean((1, 3)).astype(np.uint8)


def test_held_out_captions_are_found_at_step_0(stored):
    """Random trunks of two sides that have never met. Chance is 6 %, and so is what random heads find, give or take."""
    t = trainer(1, stored=True)
    random, count = recall(t, t.init(0).params)
    warm, _ = recall(t, begun(t, stored).params)
    assert random <= 3 * 100 / count
    assert warm >= random + 15


def test_a_run_begins_so_once(stored, tmp_path, monkeypatch):
    """Of a workdir with a checkpoint the heads are the checkpoint's."""
    t, passes = trainer(1, stored=True), []
    warm_start = spectral.warm_start
    monkeypatch.setattr(spectral, "warm_start", lambda *args: passes.append(args[-1]) or warm_start(*args))
    run = Run(t.config, dataset, tokenizer(), t, features=stored)
    with Checkpoints(tmp_path) as checkpoints:
        begun_now, *_ = run.loop(checkpoints)._start()
        assert passes == [len(dataset().train)]
        checkpoints.save(begun_now, Position(), [], t.config, tokenizer().to_json())
        checkpoints.wait()
        restored, *_ = run.loop(checkpoints)._start()
    assert len(passes) == 1
    np.testing.assert_array_equal(product(restored.params), product(begun_now.params))


def test_trained_trunks_and_towers_without_a_head_are_refused():
    params = trainer(0).abstract_state().params
    with pytest.raises(ConfigError, match=r"leaves that of image to train; set --config.optim.frozen="):
        spectral.check(config(frozen=("towers/text/(?!head/).*",)), params)
    headless = {"towers": {"image": {"stem": 0}, "text": params["towers"]["text"]}}
    with pytest.raises(ConfigError, match="image tower of kind vit has no head"):
        spectral.check(config(), headless)
    spectral.check(config(), params)
    spectral.check(dataclasses.replace(config(), optim=OptimConfig()), headless)
    with pytest.raises(ConfigError, match=r"config.optim.spectral.ridge = 0.0: must be"):
        from_config_dict(to_dict(config()) | {"optim": {"spectral": {"ridge": 0.0}}})
