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
