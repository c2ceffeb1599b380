"""Frozen parameters: named by path, without gradient, optimiser state, average or backward pass, and never changed."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from train_fakes import TOKENIZER, assert_same

from bacl_jax import paths
from bacl_jax.config import ConfigError, MeshConfig, OptimConfig
from bacl_jax.config_model import VisionConfig
from bacl_jax.config_objective import BNSConfig, CLAConfig
from bacl_jax.mesh import make_mesh, to_global
from bacl_jax.train import flops
from bacl_jax.train.ahead import activation_bytes
from bacl_jax.train.checkpoint import Checkpoints, Position
from bacl_jax.train.step import build

TEXT, TOWERS = (r"towers/text/(?!head/).*",), (r"towers/.*/(?!head/).*",)


def config(frozen=TEXT, *, mesh=None, parts=1, decay=None, **objective):
    """BACL with a vision transformer; on a mesh every parameter above 64 elements is cut."""
    base = tiny.config(**{"groups": 16} | objective)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, image=VisionConfig(kind="vit", width=16, depth=1, heads=2, patch=4)),
        optim=OptimConfig(frozen=frozen, ema_decay=decay, warmup_steps=0),
        mesh=mesh or base.mesh,
        train=dataclasses.replace(base.train, micro_batches=parts),
    )


@functools.cache
def trainer(frozen=TEXT, mesh=None, **fields):
    c = config(frozen, mesh=mesh, **fields)
    return build(c, tiny.VOCABULARY, make_mesh(mesh) if mesh else tiny.one_device())


def plain_step(frozen):
    return trainer(frozen, bns=BNSConfig(), cla=CLAConfig())


def after(t, state, steps, first=0):
    for i in range(first, first + steps):
        state, metrics = t.step(state, to_global(t.mesh, tiny.batch(i)))
    return state, metrics


def frozen_part(params, patterns=TEXT):
    return {path: leaf for path, leaf in paths.named(params) if paths.matches(patterns, path)}


def test_the_part_that_is_trained_and_what_stands_in_its_place():
    params = {"towers": {"text": {"head": {"kernel": 1}, "norm": {"bias": 2}}, "image": {"stem": 3}}, "log_scale": 4}
    part = paths.trained(params, TEXT)
    assert part == {"towers": {"text": {"head": {"kernel": 1}}, "image": {"stem": 3}}, "log_scale": 4}
    assert paths.trained(params, ("towers/.*",)) == {"log_scale": 4}
    assert paths.trained(params, ()) is params
    assert paths.replaced(params, jax.tree.map(lambda x: 10 * x, part))["towers"]["text"] == {"head": {"kernel": 10}, "norm": {"bias": 2}}
    assert paths.replaced(params, part) == params


def test_summary_counts_every_parameter():
    params = plain_step(TEXT).abstract_state().params
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    frozen = sum(math.prod(leaf.shape) for leaf in frozen_part(params).values())
    assert 0 < frozen < total
    assert paths.summary(params, TEXT) == f"{total - frozen:,} parameters are trained, {frozen:,} are frozen"


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(
        ConfigError, match=r"config\.optim\.frozen: 'towers/txt/\.\*' matches the whole path of no parameter; there are \d+"
    ):
        trainer(("towers/txt/.*",))
    with pytest.raises(ConfigError, match=r"config\.optim\.frozen: 'towers' matches the whole path of no parameter"):
        trainer((*TEXT, "towers"))


def test_everything_frozen_is_refused():
    with pytest.raises(ConfigError, match=r"config\.optim\.frozen = .*: all \d+ parameters are frozen, none is left to train"):
        trainer((".*",))


def test_the_optimiser_keeps_nothing_of_frozen_parameters():
    state = trainer(decay=0.5).abstract_state()
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    trained = size(state.params) - size(frozen_part(state.params))
    assert size(state.ema) == trained
    counters = sum(x.dtype.itemsize for x in jax.tree.leaves(state.opt_state) if x.ndim == 0 and x.dtype == jnp.int32)
    assert size(state.opt_state) == 2 * trained + counters
    shape = (tiny.VOCABULARY, 16)  # of the frozen embedding of tokens, and of nothing else
    assert [x.shape for x in jax.tree.leaves(state.params)].count(shape) == 1
    assert shape not in [x.shape for x in jax.tree.leaves((state.opt_state, state.ema))]


def test_frozen_parameters_stay_bit_for_bit_and_the_others_learn():
    t = trainer(decay=0.5)
    first = t.init(0)
    before = jax.device_get(first.params)
    state, metrics = after(t, first, 3)
    assert int(state.skipped) == 0
    assert_same(frozen_part(state.params), frozen_part(before))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), *(paths.trained(x, TEXT) for x in (jax.device_get(state.params), before)))
    kept = {path for path, leaf in paths.named(moved) if not leaf}
    assert all("attention/key/bias" in path for path in kept), kept  # no gradient ever: softmax does not see what is the same for all keys
    assert np.isfinite(float(metrics["loss"]))
    averaged = t.eval_params(state)
    assert jax.tree.structure(averaged) == jax.tree.structure(state.params)
    assert_same(frozen_part(averaged), frozen_part(before))
    chex.assert_trees_all_equal(paths.trained(averaged, TEXT), state.ema)


def test_training_is_that_with_gradients_set_to_zero_by_hand():
    """The reference trains nothing of the text trunk: its gradients are zero, and its decay is taken back."""
    t, whole = plain_step(TEXT), plain_step(())
    reference = whole.optimizer

    def step(state, batch):
        (loss, _), grads = jax.value_and_grad(whole._loss, has_aux=True)(state.params, state, batch)
        zeroed = jax.tree.map(jnp.zeros_like, grads)
        updates, _ = reference.update(paths.replaced(zeroed, paths.trained(grads, TEXT)), state.opt_state, state.params)
        return loss, paths.replaced(state.params, paths.trained(optax.apply_updates(state.params, updates), TEXT))

    batch = to_global(t.mesh, tiny.batch(0))
    loss, params = jax.jit(step)(whole.init(0), batch)
    state, metrics = t.step(t.init(0), batch)
    chex.assert_trees_all_close(metrics["loss"], loss, rtol=1e-6)
    for (path, found), expected in zip(paths.named(state.params), jax.tree.leaves(params), strict=True):
        if not path.endswith("attention/key/bias"):  # its gradient is 0, and Adam makes steps of what rounding leaves of it
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, err_msg=path)


def test_nothing_goes_backward_through_a_frozen_tower():
    """FLOPs of a step: twice those of the forward pass fall away where a tower is frozen, but for what its head needs."""
    batch = tiny.batch(0)
    text = batch.inputs["text"]
    count = {frozen: flops.count((t := plain_step(frozen)).step, t.abstract_state(), batch) for frozen in ((), TEXT, ("towers/text/.*",))}
    t = plain_step(())
    forward = flops.count(t.model.encode_text, t.abstract_state().params, text.values, text.mask)
    head = similarities = 2 * 16 * 16 * 16  # batch, width, embedding; batch, batch, embedding
    assert count[()] - count[TEXT] == 2 * (forward - head) + head  # the gradient of the pooled features falls away, too
    assert count[TEXT] - count["towers/text/.*",] == head + similarities


def test_a_frozen_tower_keeps_nothing_for_the_backward_pass():
    """Of the whole tower, and of the part below the first trained block of one that is partly frozen."""
    whole, text, most = (activation_bytes(plain_step(frozen)) for frozen in ((), TEXT, TOWERS))
    assert most < 0.2 * text < 0.2 * whole


def test_devices_and_parts_change_nothing():
    one, many = trainer(decay=0.5), trainer(mesh=MeshConfig(2, 2, 2, fsdp_floor=64), parts=2, decay=0.5)
    states = [jax.device_get(after(t, t.init(3), 2)) for t in (one, many)]
    chex.assert_trees_all_close(states[0][0].params, states[1][0].params, atol=1e-4)
    chex.assert_trees_all_close(states[0][0].ema, states[1][0].ema, atol=1e-4)
    chex.assert_trees_all_close(states[0][1]["loss"], states[1][1]["loss"], rtol=1e-4)
    assert_same(frozen_part(states[1][0].params), frozen_part(jax.device_get(many.init(3).params)))


def test_a_run_goes_on_bit_for_bit_and_evaluation_finds_the_frozen_parameters(tmp_path):
    t = trainer(decay=0.5)
    state, _ = after(t, t.init(0), 2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Position(2), (), t.config, TOKENIZER)
        checkpoints.wait()
        wanted = jax.device_get(t.eval_params(state))
        found = checkpoints.restore(t.abstract_state(), 64)
        step, params = checkpoints.restore_params(t.abstract_state().params)
    assert found is not None
    assert step == 2
    assert_same(jax.device_get(found.state), jax.device_get(state))
    assert_same(jax.device_get(params), wanted)
    went_on, straight = after(t, found.state, 2, first=2), after(t, state, 2, first=2)
    assert_same(jax.device_get(went_on), jax.device_get(straight))
