"""The contrastive term in three ways: one value, one gradient, on one device and on eight; the ring has nothing of size B x B."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.config import ConfigError, MeshConfig
from bacl_jax.config_objective import ObjectiveConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.objective.contrast import check_tiles, contrast, implementation
from bacl_jax.objective.shards import Shards
from bacl_jax.objective.similarity import Rows, positives
from bacl_jax.objective.tile import Side, scatter

B, D, K, E = 32, 8, 3, 10


def shards(*shape, tile=1024):
    return Shards(make_mesh(MeshConfig(*shape)), tile) if shape else Shards(tile=tile)


def unit(x):
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


def problem(seed=0, k=K, e=E):
    """Pairs with repeated captions and repeated pictures, candidates that are no positives, and drawn captions some of which are."""
    r = np.random.default_rng(seed)
    caption, anchor = (np.stack([r.integers(0, 20, B), np.zeros(B)], 1).astype(np.uint32) for _ in range(2))
    positive = np.asarray((caption[:, None] == caption[None]).all(2) | (anchor[:, None] == anchor[None]).all(2))
    sides = []
    for x in (unit(r.normal(size=(B, D))), unit(r.normal(size=(B, D)))):
        candidate = np.stack([r.choice(np.flatnonzero(~positive[i]), k, replace=False) for i in range(B)]).reshape(B, k)
        weight = jnp.asarray(r.random((B, k)), jnp.float32)
        ids = {"caption_id": jnp.asarray(caption), "anchor_id": jnp.asarray(anchor)}
        sides.append(Side(x=x, candidate=jnp.asarray(candidate), weight=weight, **ids))
    x = unit(r.normal(size=(e, D))) if e else jnp.zeros((0, D))
    ids = {name: jnp.asarray(np.stack([r.integers(0, 30, e), np.zeros(e)], 1).astype(np.uint32)) for name in ("caption_id", "anchor_id")}
    return *sides, Rows(x=x, valid=jnp.asarray(r.random(e) < 0.8), **ids)


def by_hand(rows, columns, drawn, scale, bias, *, config):
    """The equations, on whole matrices."""
    s, positive = rows.x @ columns.x.T, positives(rows, columns)
    row_weight, column_weight = (scatter(side.candidate, side.weight, 0, B) for side in (rows, columns))
    own = jnp.eye(B, dtype=bool)
    left_out = positive & ~own if config.same_id == "mask" else jnp.zeros((B, B), bool)
    positive = own if config.same_id == "mask" else positive
    valid = ~positives(rows, drawn) & drawn.valid[None]
    if config.kind == "sigmoid":
        m = jnp.where(left_out, 0, 1 + (row_weight + column_weight.T) / 2)
        total = -(m * jax.nn.log_sigmoid(jnp.where(positive, 1, -1) * (scale * s + bias))).sum()
        return (total - jnp.where(valid, jax.nn.log_sigmoid(-scale * rows.x @ drawn.x.T - bias), 0).sum()) / B

    def direction(logits, positive, left_out, weight, extra):
        denominator = jnp.where(left_out, 0, (1 + weight) * jnp.exp(logits)).sum(1) + extra
        return (jnp.log(denominator) - jnp.where(positive, logits, 0).sum(1) / positive.sum(1)).mean()

    extra = jnp.where(valid, jnp.exp(scale * rows.x @ drawn.x.T), 0).sum(1)
    there, back = (scale * s, positive, left_out, row_weight, extra), (scale * s.T, positive.T, left_out.T, column_weight, 0)
    return (direction(*there) + direction(*back)) / 2


def graded(loss, rows, columns, drawn):
    def value(z, w, d, scale, bias):
        with_x = (dataclasses.replace(side, x=x) for side, x in ((rows, z), (columns, w), (drawn, d)))
        return loss(*with_x, scale=scale, bias=bias)

    return jax.jit(jax.value_and_grad(value, (0, 1, 2, 3, 4)))(rows.x, columns.x, drawn.x, jnp.float32(7.0), jnp.float32(-2.0))


def computed(how, layout, rows, columns, drawn, *, kind, same_id):
    config = ObjectiveConfig(kind=kind, same_id=same_id, contrast=how)

    def loss(rows, columns, drawn, scale, bias):
        return contrast(rows, columns, drawn, scale=scale, bias=bias if kind == "sigmoid" else None, config=config, shards=layout)[0]

    expected = graded(functools.partial(by_hand, config=config), rows, columns, drawn)
    return graded(loss, rows, columns, drawn), expected


@pytest.mark.parametrize(
    ("how", "shape"),
    [
        ("dense", ()),
        ("dense", (8, 1, 1)),
        ("chunked", ()),
        ("chunked", (2, 2, 2)),
        ("ring", ()),
        ("ring", (8, 1, 1)),
        ("ring", (2, 2, 2)),
    ],
)
@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize(("same_id", "k", "e"), [("positive", K, E), ("mask", K, E), ("positive", 0, 0)])
def test_value_and_every_gradient_are_those_of_the_equations(how, shape, kind, same_id, k, e):
    found, expected = computed(how, shards(*shape, tile=2 if shape else 8), *problem(k=k, e=e), kind=kind, same_id=same_id)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert float(jnp.linalg.norm(a - b)) <= 1e-5 * float(jnp.linalg.norm(b)) + 1e-7


def big(size, e, dim):
    f, u = (lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)), jax.ShapeDtypeStruct((size, 2), jnp.uint32)
    side = Side(x=f(size, dim), caption_id=u, anchor_id=u, candidate=jax.ShapeDtypeStruct((size, 0), jnp.int32), weight=f(size, 0))
    ids = jax.ShapeDtypeStruct((e, 2), jnp.uint32)
    return side, side, Rows(x=f(e, dim), caption_id=ids, anchor_id=ids, valid=jax.ShapeDtypeStruct((e,), bool))


def compiled(size, layout, how="ring", e=0, dim=512):
    config = ObjectiveConfig(contrast=how)

    def value(z, w, rows, columns, drawn):
        rows, columns = dataclasses.replace(rows, x=z), dataclasses.replace(columns, x=w)
        return contrast(rows, columns, drawn, scale=jnp.float32(7.0), bias=None, config=config, shards=layout)[0]

    rows, columns, drawn = big(size, e, dim)
    return jax.jit(jax.value_and_grad(value, (0, 1))).lower(rows.x, columns.x, rows, columns, drawn).compile()


def test_memory_of_the_ring_is_linear_in_the_batch():
    temp = {size: compiled(size, shards()).memory_analysis().temp_size_in_bytes for size in (8192, 32768)}
    assert temp[32768] <= 64 * 2**20, temp
    assert temp[8192] <= 0.05 * 1024 * 2**20, temp


@pytest.mark.parametrize("how", ["ring", "chunked"])
def test_drawn_captions_keep_the_memory_linear(how):
    """A quarter as many captions as rows: they add a tile of them against all rows at the most."""
    temp = {size: compiled(size, shards(), how, e=size // 4, dim=64).memory_analysis().temp_size_in_bytes for size in (4096, 8192)}
    none = compiled(8192, shards(), how, dim=64).memory_analysis().temp_size_in_bytes
    assert temp[8192] <= 2.1 * temp[4096], temp
    assert temp[8192] <= none + 2 * 4 * 8192 * shards().tile, (temp, none)


def test_rows_that_make_no_tiles_are_refused():
    check_tiles(ObjectiveConfig(), 8192, 1)
    check_tiles(ObjectiveConfig(), 2038, 1)  # dense
    for how, batch, devices in (("ring", 2066, 1), ("chunked", 2066, 8), ("ring", 4132, 2)):
        with pytest.raises(ConfigError, match=f"train.batch_size {batch}: .* but of 2: use {batch // 2048 * 2048} rows"):
            check_tiles(ObjectiveConfig(contrast=how), batch, devices)


def test_the_ring_gathers_nothing():
    text = compiled(1024, shards(2, 2, 2)).as_text()
    assert "all-gather" not in text
    assert "collective-permute" in text


@pytest.mark.parametrize(("batch", "devices", "how"), [(256, 1, "dense"), (2048, 1, "dense"), (8192, 1, "ring"), (8192, 16, "dense")])
def test_which_way_is_taken_by_itself(batch, devices, how):
    assert implementation(ObjectiveConfig(), batch, devices) == how
    assert implementation(ObjectiveConfig(contrast="chunked"), batch, devices) == "chunked"
