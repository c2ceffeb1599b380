"""Weight decay, groups and their clipping."""

import chex
import jax
import jax.numpy as jnp
import pytest
import tiny

from bacl_jax.config import OptimConfig
from bacl_jax.models import Model
from bacl_jax.optim import decay_mask, groups, make_optimizer


def test_only_matrices_and_embeddings_decay():
    params = jax.eval_shape(Model(tiny.config(), tiny.VOCABULARY).init, jax.random.key(0))
    mask = jax.tree_util.tree_flatten_with_path(decay_mask(params))[0]
    decayed = {jax.tree_util.keystr(p, simple=True, separator="/") for p, on in mask if on}
    assert "towers/text/embedding" in decayed
    assert "towers/image/stem/kernel" in decayed
    assert not any("norm" in p or "bias" in p or "positions" in p or "log_scale" in p for p in decayed)


@pytest.mark.parametrize("group", ["policy", "cross_attention"])
def test_each_group_is_clipped_by_itself(group):
    params = {group: {"kernel": jnp.zeros(4)}, "towers": {"kernel": jnp.zeros((2, 2))}, "log_scale": jnp.float32(1)}
    assert groups(params)[group] == {"kernel": group}
    assert groups(params)["log_scale"] == "model"
    optimizer = make_optimizer(OptimConfig(warmup_steps=0), 10)
    huge = params | {group: {"kernel": jnp.full(4, 1e6)}, "towers": {"kernel": jnp.ones((2, 2)) * 0.1}, "log_scale": jnp.float32(0)}
    calm = huge | {group: {"kernel": jnp.zeros(4)}}
    state = optimizer.init(params)
    chex.assert_trees_all_close(optimizer.update(huge, state, params)[0]["towers"], optimizer.update(calm, state, params)[0]["towers"])


def updates(step=0, grad=3.0, **fields):
    """The update number `step` of a parameter in each group; the same gradient at every step."""
    params = {
        "policy": {"kernel": jnp.ones((1, 2))},
        "cross_attention": {"kernel": jnp.ones((1, 2))},
        "towers": {"kernel": jnp.ones((1, 2))},
    }
    optimizer = make_optimizer(OptimConfig(warmup_steps=0, **fields), 10)
    state, found = optimizer.init(params), params
    for _ in range(step + 1):
        found, state = optimizer.update(jax.tree.map(lambda x: jnp.full_like(x, grad), params), state, params)
    return {name: float(part["kernel"][0, 0]) for name, part in found.items()}


@pytest.mark.parametrize(
    ("field", "value", "acts_on"),
    [
        ("lr", 1e-2, {"towers"}),
        ("cross_lr", 1e-2, {"cross_attention"}),
        ("policy_lr", 1e-2, {"policy"}),
        ("weight_decay", 0.0, {"towers", "cross_attention"}),
        ("eps", 1.0, {"towers", "cross_attention"}),
        ("b1", 0.1, {"towers", "cross_attention"}),
        ("b2", 0.5, {"towers", "cross_attention"}),
        ("end_lr_share", 0.9, {"towers", "cross_attention"}),
    ],
)
def test_each_field_acts_on_its_groups_alone(field, value, acts_on):
    growing = lambda **fields: {step: updates(step, **fields) for step in (0, 3)}  # noqa: E731
    before, after = growing(), growing(**{field: value})
    changed = {name for step in before for name in before[step] if abs(before[step][name] - after[step][name]) > 1e-7}
    if field in ("b1", "b2"):  # Adam of a constant gradient does not see them
        assert changed == set()
    else:
        assert changed == acts_on


def test_clipping_of_the_model_is_by_the_norm_of_its_gradient():
    small, large = (updates(grad=grad, eps=1.0)["towers"] for grad in (10.0, 1000.0))
    assert small == pytest.approx(large, rel=1e-5)
    assert updates(grad=10.0, eps=1.0, clip_norm=100.0)["towers"] != pytest.approx(small, rel=1e-2)
