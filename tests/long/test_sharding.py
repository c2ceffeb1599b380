"""One gradient, however the step is spread over devices; and what the compiled step sends between them."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bacl_jax.config import MeshConfig
from bacl_jax.config_model import VisionConfig
from bacl_jax.config_objective import BNSConfig, CLAConfig
from bacl_jax.mesh import make_mesh, to_global
from bacl_jax.train.checkpoint import Checkpoints, Position
from bacl_jax.train.step import build

B, T, C = 16, 8, 16  # of the tiny config: rows, tokens, width of a token feature
KEY_BIAS = re.compile(r"attention'\]\['key'\]\['bias'\]")  # its gradient is 0: softmax does not see what is the same for all keys


def config(shape=None, parts=1, **objective):
    """BACL with a vision transformer, every channel and the gradient of CLA into the towers; every parameter above 64 elements is cut."""
    base = tiny.config(**{"groups": 8, "bank_size": 40} | objective)  # a bank that the batch does not divide
    model = dataclasses.replace(base.model, image=VisionConfig(kind="vit", width=16, depth=1, heads=2, patch=4))
    mesh = MeshConfig(*shape, fsdp_floor=64) if shape else MeshConfig()
    return dataclasses.replace(base, model=model, mesh=mesh, train=dataclasses.replace(base.train, micro_batches=parts))


def trainer(shape=None, **objective):
    c = config(shape, **objective)
    return build(c, tiny.VOCABULARY, make_mesh(c.mesh) if shape else tiny.one_device())


FULL = {"cla": CLAConfig(enabled=True, width=16, heads=2, into_towers=True)}
OBJECTIVES = {
    "bacl": FULL,
    "bacl, sigmoid": FULL | {"kind": "sigmoid"},
    "cla without bns": FULL | {"bns": BNSConfig(), "same_id": "mask"},
    "sigmoid": {"kind": "sigmoid", "bns": BNSConfig(), "cla": CLAConfig()},
    "bacl in parts": FULL | {"groups": 16},  # two parts on each of eight devices: rows are chosen in as many groups
    "bacl, sigmoid, in parts": FULL | {"kind": "sigmoid", "groups": 16},
    "infonce": {"bns": BNSConfig(), "cla": CLAConfig()},
}


@functools.cache
def after_two_steps(name):
    """(state on the host, loss, metrics, gradients) of one device, with the dense loss."""
    t = trainer(**OBJECTIVES[name], contrast="dense")
    state = t.init(3)
    for i in range(2):
        state, _ = t.step(state, to_global(t.mesh, tiny.batch(i, captions=30)))
    state = jax.device_get(state)
    return state, graded(t, state)


def graded(t, state):
    state = jax.device_put(state, t.shardings)
    both = jax.jit(jax.value_and_grad(t._loss, has_aux=True))
    (loss, (metrics, _)), grads = both(state.params, state, to_global(t.mesh, tiny.batch(7, captions=30)))
    return jax.device_get((loss, metrics, grads))


@pytest.mark.parametrize(
    ("name", "shape", "contrast", "tile", "parts"),
    [
        ("bacl", None, "ring", 4, 4),
        ("bacl", (8, 1, 1), "ring", 1024, 1),
        ("bacl", (2, 2, 2), "ring", 1, 1),
        ("bacl", (2, 4, 1), "chunked", 8, 1),
        ("bacl, sigmoid", (4, 1, 2), "ring", 2, 1),
        ("cla without bns", (2, 2, 2), "dense", 1024, 1),
        ("sigmoid", (1, 4, 2), "chunked", 4, 1),
        ("bacl in parts", (8, 1, 1), "ring", 1024, 2),
        ("bacl in parts", (2, 2, 2), "dense", 1024, 2),
        ("bacl, sigmoid, in parts", (1, 4, 2), "chunked", 4, 2),
        ("infonce", (4, 1, 2), "ring", 2, 2),
        ("infonce", (1, 8, 1), "chunked", 8, 1),
    ],
)
def test_loss_metrics_and_every_gradient_are_those_of_one_device(name, shape, contrast, tile, parts):
    state, (loss, metrics, grads) = after_two_steps(name)
    found_loss, found_metrics, found_grads = graded(trainer(shape, parts=parts, **OBJECTIVES[name], contrast=contrast, tile=tile), state)
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    for key, value in metrics.items():
        np.testing.assert_allclose(found_metrics[key], value, rtol=1e-4, atol=1e-6, err_msg=key)
    for (path, a), b in zip(jax.tree.leaves_with_path(found_grads), jax.tree.leaves(grads), strict=True):
        if not KEY_BIAS.search(jax.tree_util.keystr(path)):
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + 1e-7, jax.tree_util.keystr(path)


@pytest.mark.parametrize(("shape", "contrast", "parts"), [((8, 1, 1), "ring", 2), ((2, 2, 2), "chunked", 1)])
def test_a_step_leaves_the_bank_of_one_device(shape, contrast, parts):
    """Ids, tokens, slots and cursor are equal; embeddings to 1e-5."""
    state, _ = after_two_steps("bacl")
    banks = []
    for t in (trainer(**FULL, contrast="dense"), trainer(shape, parts=parts, **FULL, contrast=contrast)):
        new, _ = t.step(jax.device_put(state, t.shardings), to_global(t.mesh, tiny.batch(7, captions=30)))
        banks.append({name: value for name, value in dataclasses.asdict(jax.device_get(new.bank)).items() if value is not None})
    assert banks[0].keys() == banks[1].keys()
    assert banks[0].pop("stored") == banks[1].pop("stored") == ()  # no features are stored
    for name, one in banks[0].items():
        np.testing.assert_allclose(banks[1][name], one, rtol=1e-5, atol=1e-6 if one.dtype == np.float32 else 0, err_msg=name)


def collectives(text):
    """(kind, elements of its largest result) of each collective of a compiled program."""
    found = re.findall(r"= (.*?) (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(?:-start)?\(", text)
    sizes = lambda result: [math.prod(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\[([\d,]*)\]", result)]  # noqa: E731
    return [(kind, max(sizes(result))) for result, kind in found]


@functools.cache
def sent(*shape):
    t = trainer(shape, contrast="ring")
    compiled = t.step.lower(t.abstract_state(), to_global(t.mesh, tiny.batch(0))).compile()
    return collectives(compiled.as_text())


def test_no_collective_carries_the_token_features_of_a_batch():
    assert max(size for _, size in sent(2, 2, 2)) < B * T * C


def test_rows_over_eight_devices_meet_by_going_round():
    """No matrix of similarities and no embeddings of the batch or of the bank: ids and the policy's narrow projections alone."""
    found = sent(8, 1, 1)
    hidden, bank = tiny.config().objective.bns.hidden, config().objective.bank_size
    assert max(size for kind, size in found if kind == "all-gather") <= hidden * bank
    assert any(kind == "collective-permute" for kind, _ in found)
    assert not any(kind == "all-to-all" for kind, _ in found)


def test_parameters_optimiser_and_bank_are_spread():
    t = trainer((2, 2, 2))
    state = t.init(0)
    large = [x for x in jax.tree.leaves((state.params, state.opt_state)) if x.size >= 64 and x.ndim == 2]
    assert len(large) > 30
    assert all(x.addressable_shards[0].data.size <= x.size // 2 for x in large)
    assert state.bank.text.addressable_shards[0].data.shape == (5, 16)
    after, _ = t.step(state, to_global(t.mesh, tiny.batch(0)))
    assert jax.tree.map(lambda x: x.sharding.spec, after.params) == jax.tree.map(lambda x: x.spec, t.shardings.params)


def test_the_state_of_a_mesh_starts_as_on_one_device():
    one, eight = trainer().init(5), trainer((2, 2, 2)).init(5)
    different = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), jax.device_get(one.params), jax.device_get(eight.params))
    assert max(jax.tree.leaves(different)) == 0


@pytest.fixture(scope="module")
def of_eight_devices(tmp_path_factory):
    """(workdir with the checkpoint of step 1, its state, state and metrics after step 2), all on (8, 1, 1)."""
    t = trainer((8, 1, 1), **FULL)
    state, _ = t.step(t.init(3), to_global(t.mesh, tiny.batch(0, captions=30)))
    saved = jax.device_get(state)
    after = jax.device_get(t.step(state, to_global(t.mesh, tiny.batch(1, captions=30))))
    workdir = tmp_path_factory.mktemp("eight")
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(jax.device_put(saved, t.shardings), Position(1), (), t.config, {})
        checkpoints.wait()
    return workdir, saved, after


def restored(workdir, t):
    with Checkpoints(workdir) as checkpoints:
        found = checkpoints.restore(t.abstract_state(), 64)
    assert found is not None
    assert found.position.step == 1
    assert jax.tree.map(lambda x: x.sharding, found.state.params) == t.shardings.params
    return found.state


@pytest.mark.parametrize("shape", [(4, 2, 1), (2, 2, 2), (1, 8, 1), None])
def test_what_one_mesh_saved_any_other_reads_bit_for_bit(shape, of_eight_devices):
    workdir, saved, _ = of_eight_devices
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored(workdir, trainer(shape, **FULL))), saved)


def test_one_device_goes_on_where_eight_were(of_eight_devices):
    """The next step is theirs, up to the order of sums."""
    workdir, _, (expected, expected_metrics) = of_eight_devices
    t = trainer(**FULL)
    after, metrics = jax.device_get(t.step(restored(workdir, t), to_global(t.mesh, tiny.batch(1, captions=30))))
    np.testing.assert_array_equal(after.bank.index, expected.bank.index)
    np.testing.assert_allclose(after.bank.text, expected.bank.text, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)
