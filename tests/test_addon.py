"""The add-on: the train step's objective and gradients on the same features, on any mesh; what does not fit is named."""

import ast
import dataclasses
import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bacl_jax import addon
from bacl_jax.config import Config, ConfigError
from bacl_jax.data.source import hash_ids
from bacl_jax.objective import bank as memory
from bacl_jax.schedules import progress
from bacl_jax.train.encode import encode
from bacl_jax.train.step import build

EXAMPLE = Path(__file__).parents[1] / "examples" / "your_trainer.py"
DIMS = addon.Dims(embed=16, context=8, text_width=16, anchor_width=8)


def full() -> Config:
    """BNS and CLA without partners, which are not the add-on's."""
    config = tiny.config(groups=8)
    return tiny.config(groups=8, bns=dataclasses.replace(config.objective.bns, partner_share=0.0))


@pytest.fixture(scope="module")
def trainer():
    return build(full(), tiny.VOCABULARY, tiny.one_device())


def features(model, params, batch, nudge):
    """What a trainer with these towers hands over; `nudge` is added to what its towers gave."""
    pairs = encode(model, params, batch)

    def encode_text(ids, mask):
        text = model.encode_text(params, ids, mask)
        return text.pooled, text.tokens

    return addon.Features(
        z=pairs.anchor.pooled + nudge["z"],
        w=pairs.text.pooled + nudge["w"],
        X=pairs.anchor.tokens + nudge["X"],
        Y=pairs.text.tokens + nudge["Y"],
        ids=pairs.ids,
        mask=pairs.mask,
        caption_id=batch.caption_id,
        anchor_id=batch.anchor_id,
        log_scale=params["log_scale"],
        encode_text=encode_text,
    )


def gradient_of(trainer, mesh=None):
    """(params, nudge, bank, batch, key, u) -> ((L, (bank, metrics)), gradients) by the add-on, with the trainer's towers."""
    model, config = trainer.model, trainer.config.objective

    @chex.assert_max_traces(n=1)
    def loss(wrt, bank, batch, key, u):
        params, nudge = wrt
        total, bank, metrics = addon.loss(params, bank, features(model, params, batch, nudge), key, u, config=config, mesh=mesh)
        return total, (bank, metrics)

    return jax.value_and_grad(loss, has_aux=True)


def no_nudge():
    return {"z": jnp.zeros((16, 16)), "w": jnp.zeros((16, 16)), "X": jnp.zeros((16, 16, 8)), "Y": jnp.zeros((16, 8, 16))}


@pytest.fixture(scope="module")
def ours(trainer):
    """Compiles once, or fails, for all tests of this file."""
    return jax.jit(gradient_of(trainer))


@pytest.fixture(scope="module")
def state(trainer):
    """A train state with two batches in its bank."""
    state = trainer.init(0)
    state = dataclasses.replace(state, step=jnp.int32(7))
    for seed in (1, 2):
        kept = jax.jit(lambda params, batch: encode(trainer.model, params, batch).to_keep())(state.params, tiny.batch(seed))
        bank = memory.push(state.bank, write=jnp.bool_(True), index=jnp.asarray(tiny.batch(seed).index), **kept)
        state = dataclasses.replace(state, bank=bank)
    return jax.device_put(jax.device_get(state))  # off the trainer's mesh


def key_of(state):
    return jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)


def test_value_and_gradient_are_the_train_steps(trainer, state, ours):
    batch = jax.tree.map(jnp.asarray, tiny.batch(0))
    (expected, (theirs, rows)), grads = jax.jit(jax.value_and_grad(trainer._loss, has_aux=True))(state.params, state, batch)
    (total, (bank, metrics)), (found, nudge) = ours((state.params, no_nudge()), state.bank, batch, key_of(state), progress(7, 20))
    chex.assert_trees_all_close(total, expected, rtol=1e-6)
    chex.assert_trees_all_close(metrics, theirs, rtol=2e-6, atol=2e-6)
    chex.assert_trees_all_close(found, grads, rtol=1e-4, atol=2e-6)
    assert all(float(jnp.abs(nudge[name]).max()) > 1e-4 for name in ("z", "w"))
    assert all(float(jnp.abs(nudge[name]).max()) == 0 for name in ("X", "Y"))  # cla.into_towers is off
    kept = memory.push(state.bank, write=jnp.bool_(True), index=jnp.zeros(16, jnp.int32), **rows)
    chex.assert_trees_all_close(bank, kept, atol=1e-6)


def test_the_bank_moves_and_leaves_out_what_is_not_finite(trainer, state, ours):
    _, bank = addon.init(jax.random.key(0), DIMS, trainer.config.objective)
    filled = []
    for seed, scale in ((0, 2.0), (1, np.nan), (2, 2.0)):
        params = state.params | {"log_scale": jnp.float32(scale)}
        batch = jax.tree.map(jnp.asarray, tiny.batch(seed))
        (_, (bank, _)), _ = ours((params, no_nudge()), bank, batch, key_of(state), jnp.float32(0.5))
        filled.append((int(bank.filled.sum()), int(bank.cursor)))
    assert filled == [(16, 16), (16, 32), (32, 0)]


def test_eight_devices_with_axes_of_other_names_give_the_loss_of_one(trainer, state, ours):
    mesh = jax.make_mesh((4, 2), ("rows", "more"), axis_types=(AxisType.Auto,) * 2)
    params, bank = addon.init(jax.random.key(1), DIMS, trainer.config.objective, mesh=mesh)
    assert bank.text.sharding.spec == PartitionSpec(("rows", "more"))
    chex.assert_trees_all_equal_shapes(params, {name: state.params[name] for name in params})
    put = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(("rows", "more")) if np.ndim(x) else PartitionSpec()))  # noqa: E731
    batch, bank = jax.tree.map(put, (tiny.batch(0), jax.device_get(state.bank)))
    whole = jax.device_put((jax.device_get(state.params), no_nudge()), NamedSharding(mesh, PartitionSpec()))
    key = jax.random.key(3)
    spread = jax.jit(gradient_of(trainer, mesh))
    (total, (kept, metrics)), grads = spread(whole, bank, batch, key, jnp.float32(0.5))
    spread(whole, kept, batch, key, jnp.float32(0.6))
    assert spread._cache_size() == 1
    alone = (state.params, no_nudge()), state.bank, jax.tree.map(jnp.asarray, tiny.batch(0)), key, jnp.float32(0.5)
    (expected, (one, theirs)), reference = ours(*alone)
    chex.assert_trees_all_close(jax.device_get((total, metrics, kept)), jax.device_get((expected, theirs, one)), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(jax.device_get(grads), jax.device_get(reference), atol=1e-4)


def test_token_features_learn_where_the_config_says_so_and_pooled_ones_have_any_length():
    cla = addon.CLAConfig(enabled=True, width=16, heads=2, into_towers=True)
    config = dataclasses.replace(tiny.plain().objective, cla=cla)
    params, bank = addon.init(jax.random.key(0), DIMS, config)

    def loss(x, y, stretch):
        given = dataclasses.replace(rows(), X=x, Y=y, z=stretch * rows().z)
        return addon.loss(params, bank, given, jax.random.key(1), 0.5, config=config)[0]

    both = jax.jit(jax.value_and_grad(loss, (0, 1)))
    total, grads = both(rows().X, rows().Y, 1.0)
    assert all(float(jnp.abs(grad).max()) > 0 for grad in grads)
    chex.assert_trees_all_close(both(rows().X, rows().Y, 7.0)[0], total, rtol=1e-5)


@functools.cache
def rows():
    """Features of a batch of random numbers."""
    random, batch = np.random.default_rng(0), tiny.batch(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    text = batch.inputs["text"]
    return addon.Features(
        z=normal(16, 16),
        w=normal(16, 16),
        X=normal(16, 4, 8),
        Y=normal(16, 8, 16),
        ids=text.values,
        mask=text.mask,
        caption_id=batch.caption_id,
        anchor_id=batch.anchor_id,
        log_scale=np.float32(2),
        encode_text=lambda ids, mask: (jnp.ones((ids.shape[0], 16)), jnp.ones((*ids.shape, 16))),
    )


@functools.cache
def fresh(kind="infonce"):
    config = dataclasses.replace(full().objective, kind=kind)
    return *addon.init(jax.random.key(0), DIMS, config), config


def half(x):
    return jnp.asarray(x, jnp.bfloat16)


@pytest.mark.parametrize(
    ("given", "objective"),
    [
        ({"bias": np.float32(-10)}, {"kind": "sigmoid"}),
        ({"X": None, "Y": None, "encode_text": None}, {"cla": addon.CLAConfig(), "bns": addon.BNSConfig(enabled=True, drawn_share=0.0)}),
        ({"X": half(np.ones((16, 4, 8))), "Y": half(np.ones((16, 8, 16))), "X_mask": np.ones((16, 4), bool)}, {}),
    ],
    ids=["sigmoid", "BNS alone without drawn captions", "bfloat16 tokens"],
)
def test_other_objectives_and_types(given, objective):
    """Traced, not run: numbers are the objective's tests' matter."""
    config = dataclasses.replace(full().objective, **objective)
    params, bank = addon.init(jax.random.key(0), DIMS, config)
    given = dataclasses.replace(rows(), **given)
    total, kept, metrics = jax.eval_shape(lambda: addon.loss(params, bank, given, jax.random.key(0), 0, config=config))
    assert {x.dtype for x in (total, *metrics.values())} == {jnp.dtype("float32")}
    chex.assert_trees_all_equal_shapes_and_dtypes(kept, bank)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": np.zeros((16, 12), np.float32)}, r"features.z is float32\[16, 12\]: must be floating\[16, 16\] .*16 = dims.embed"),
        ({"w": np.zeros((15, 16), np.float32)}, r"features.w is float32\[15, 16\]: must be floating\[16, 16\] \(16 = rows of z"),
        ({"mask": None}, r"features.mask is None: must be bool\[16, 8\]"),
        ({"ids": np.zeros((16, 9), np.int32)}, r"features.ids is int32\[16, 9\]: must be integer\[16, 8\] .*8 = dims.context"),
        (
            {"X": np.zeros((16, 4, 5), np.float32)},
            r"features.X is float32\[16, 4, 5\]: must be floating\[16, 4, 8\] .*8 = dims.anchor_width",
        ),
        ({"X": None}, r"features.X is None: must be floating\[16, P, 8\]"),
        ({"X_mask": np.ones((16, 5), bool)}, r"features.X_mask is bool\[16, 5\]: must be bool\[16, 4\]"),
        ({"caption_id": np.zeros((16, 2), np.int64)}, r"features.caption_id is int64\[16, 2\]: must be uint32\[16, 2\]"),
        ({"log_scale": 2.0}, r"features.log_scale is 2.0: must be floating\[\]"),
        ({"encode_text": None}, r"features.encode_text is None: must encode captions"),
        (
            {"encode_text": lambda ids, mask: (jnp.ones((ids.shape[0], 9)), None)},
            r"w of features.encode_text is float32\[8, 9\]: must be floating\[8, 16\]",
        ),
    ],
)
def test_features_that_do_not_fit_are_named(change, message):
    params, bank, config = fresh()
    given = dataclasses.replace(rows(), **change)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: addon.loss(params, bank, given, jax.random.key(0), 0.5, config=config)[0])


def test_what_else_is_refused():
    params, bank, config = fresh()
    loss = functools.partial(addon.loss, params, bank, rows(), jax.random.key(0), 0.5)
    with pytest.raises(ValueError, match=r"features.bias is None: must be floating\[\]"):
        loss(config=dataclasses.replace(config, kind="sigmoid"))
    with pytest.raises(ValueError, match=r"params lack \['policy'\]"):
        addon.loss({"cross_attention": params["cross_attention"]}, bank, rows(), jax.random.key(0), 0.5, config=config)
    with pytest.raises(ValueError, match=r"mesh axes .*Explicit.*must be Auto"):
        loss(config=config, mesh=jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,)))
    with pytest.raises(ConfigError, match=r"config.bns.partner_share = 0.25: must be 0"):
        addon.init(jax.random.key(0), DIMS, tiny.config().objective)
    with pytest.raises(ConfigError, match=r"config.bns.k = 0: must be an integer >= 1$"):
        addon.init(jax.random.key(0), DIMS, addon.ObjectiveConfig(bns=addon.BNSConfig(enabled=True, k=0)))
    with pytest.raises(ConfigError, match=r"CLA needs the widths of Y and X"):
        addon.init(jax.random.key(0), addon.Dims(embed=16, context=8), config)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    with pytest.raises(ConfigError, match=r"config.bank_size = 50: must be divisible by the 8 devices"):
        addon.init(jax.random.key(0), DIMS, dataclasses.replace(config, bank_size=50), mesh=mesh)


def test_ids_are_those_of_our_own_data():
    chex.assert_trees_all_equal(addon.caption_ids(["A  red\tbicycle"]), hash_ids(["a red bicycle"]))
    assert addon.anchor_ids(["a.jpg", "b.jpg"]).shape == (2, 2)


def test_the_example_is_short_and_knows_the_add_on_alone():
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) < 60
    imports = [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [line for line in imports if "bacl_jax" in line] == ["from bacl_jax import addon"]
    assert not [line for line in imports if "flax" in line]
