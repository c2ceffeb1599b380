"""Towers and heads: shapes, masks, both image towers, both tiny details that break silently."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from bacl_jax.models import Model, vision
from bacl_jax.models.layers import by_rows
from bacl_jax.models.pixels import Patches

BATCH = jax.tree.map(jnp.asarray, tiny.batch())
IMAGES, TEXT = BATCH.inputs["image"].values, BATCH.inputs["text"]


def model(kind="conv", **objective):
    config = tiny.config(**objective)
    image = dataclasses.replace(config.model.image, kind=kind)
    return Model(dataclasses.replace(config, model=dataclasses.replace(config.model, image=image)), tiny.VOCABULARY)


@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_image_towers(kind):
    m = model(kind)
    params = jax.jit(m.init)(jax.random.key(0))
    found = jax.jit(m.encode_image)(params, IMAGES)
    assert found.pooled.shape == (16, 16)
    assert found.tokens.shape == (16, m.grid[0] * m.grid[1], 8)
    chex.assert_trees_all_close(jnp.linalg.norm(found.pooled, axis=1), jnp.ones(16), rtol=1e-5)
    grads = jax.jit(jax.grad(lambda p: (m.encode_image(p, IMAGES).pooled[:, 0] * jnp.arange(16)).sum()))(params)
    used = {name for name, g in grads["towers"]["image"].items() if max(float(jnp.abs(x).max()) for x in jax.tree.leaves(g)) > 0}
    assert {"stem", "head", "norm"} <= used


@pytest.mark.parametrize(
    ("modality", "kind"), [("image", "vit"), ("image", "clip"), ("text", "transformer"), ("text", "clip"), ("text", "bert")]
)
def test_the_activation_is_the_configs(modality, kind):
    """One set of parameters, two activations, two embeddings."""
    text_mask, found = TEXT.mask, []
    for activation in ("gelu_tanh", "quick_gelu"):
        base = tiny.plain()
        tower = dataclasses.replace(getattr(base.model, modality), kind=kind, activation=activation)
        m = Model(dataclasses.replace(base, model=dataclasses.replace(base.model, **{modality: tower})), tiny.VOCABULARY)
        params = jax.jit(m.init)(jax.random.key(0))
        found.append(
            jax.jit(m.encode_image)(params, IMAGES) if modality == "image" else jax.jit(m.encode_text)(params, TEXT.values, text_mask)
        )
    assert float(jnp.abs(found[0].pooled - found[1].pooled).max()) > 1e-5


def test_patches_are_a_convolution_written_as_one_product():
    stem = Patches(3, 8, (4, 4), strides=4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    stem.bias[...] = jnp.arange(8.0)
    images = jax.random.normal(jax.random.key(0), (5, 12, 12, 3))
    expected = nnx.Conv.__call__(stem, images).reshape(5, 9, 8)
    chex.assert_trees_all_close(stem(images), expected, rtol=1e-5, atol=1e-5)
    m = model("vit")
    step = jax.jit(jax.grad(lambda p: m.encode_image(p, IMAGES).pooled.sum())).trace(jax.eval_shape(m.init, jax.random.key(0)))
    assert "conv_general_dilated" not in str(step.jaxpr)


def test_a_mesh_of_other_axes_is_left_alone():
    x = jnp.ones((8, 2, 4))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((8,), ("tensor",))):
        assert by_rows(x) is x


def deep(**changes):
    base = tiny.config()
    image = dataclasses.replace(base.model.image, kind="vit", depth=4, width=16)
    return Model(dataclasses.replace(base, model=dataclasses.replace(base.model, image=image, **changes)), tiny.VOCABULARY)


def graded(m, params, images):
    return jax.jit(jax.value_and_grad(lambda p: (m.encode_image(p, images).pooled[:, 0] * jnp.arange(len(images))).sum()))


def test_what_is_made_again_or_compiled_once_changes_no_number():
    plain = deep()
    params = jax.jit(plain.init)(jax.random.key(0))
    expected = graded(plain, params, IMAGES)(params)
    for remat, scan in (("dots", False), ("none", True), ("full", True)):
        other = deep(remat=remat, scan_layers=scan)
        chex.assert_trees_all_close(graded(other, params, IMAGES)(params), expected, rtol=1e-4, atol=1e-5)


def test_remat_takes_less_memory_and_a_scan_less_program():
    """Remat is looked at inside a scan: elsewhere XLA for CPUs merges what is made again with what was made before."""
    images = jnp.zeros((256, 16, 16, 3), jnp.uint8)

    def compiled(**changes):
        m = deep(**changes)
        params = jax.eval_shape(m.init, jax.random.key(0))
        return graded(m, params, images).lower(params).compile()

    temp = {remat: compiled(remat=remat, scan_layers=True).memory_analysis().temp_size_in_bytes for remat in ("none", "dots", "full")}
    assert temp["full"] < 0.6 * temp["none"], temp
    assert temp["full"] < temp["dots"] < temp["none"], temp
    products = [compiled(scan_layers=scan).as_text().count(" dot(") for scan in (False, True)]
    assert products[1] < 0.5 * products[0], products


def test_padding_changes_no_embedding():
    m = model()
    params = jax.jit(m.init)(jax.random.key(0))
    junk = jnp.where(TEXT.mask, TEXT.values, 17)
    one, other = (jax.jit(m.encode_text)(params, ids, TEXT.mask) for ids in (TEXT.values, junk))
    chex.assert_trees_all_close(one.pooled, other.pooled, atol=1e-6)


def test_attention_rows_are_distributions_over_patches():
    m = model()
    params = jax.jit(m.init)(jax.random.key(0))
    text, image = jax.jit(m.encode_text)(params, TEXT.values, TEXT.mask), jax.jit(m.encode_image)(params, IMAGES)
    attention, logit = jax.jit(m.attend)(params, text, image)
    assert attention.shape == (16, 8, 16)
    assert logit.shape == (16,)
    chex.assert_trees_all_close(attention.sum(-1), jnp.ones((16, 8)), rtol=1e-5)


def test_a_part_that_is_off_is_named():
    config = tiny.config()
    off = dataclasses.replace(config.objective, cla=dataclasses.replace(config.objective.cla, enabled=False))
    m = Model(dataclasses.replace(config, objective=off), tiny.VOCABULARY)
    params = jax.jit(m.init)(jax.random.key(0))
    features = jax.jit(m.encode_image)(params, IMAGES)
    with pytest.raises(ValueError, match="no cross_attention"):
        m.attend(params, features, features)


def test_temperature_and_bias_start_where_the_config_says():
    base = tiny.config()
    sigmoid = dataclasses.replace(base, objective=dataclasses.replace(base.objective, kind="sigmoid", init_scale=9.0, init_bias=-4.0))
    params = jax.jit(Model(sigmoid, tiny.VOCABULARY).init)(jax.random.key(0))
    assert float(jnp.exp(params["log_scale"])) == pytest.approx(9.0)
    assert float(params["bias"]) == -4.0


def test_policy_is_bounded():
    m = model()
    params = jax.jit(m.init)(jax.random.key(0))
    r = np.random.default_rng(0)
    z, w = jnp.asarray(r.normal(size=(4, 16)), jnp.float32), jnp.asarray(r.normal(size=(9, 16)), jnp.float32)
    picked = jnp.asarray(r.integers(0, 9, (4, 5)))
    s = (z @ w.T)[jnp.arange(4)[:, None], picked]
    assert float(jnp.abs(m.policy(params, z, w, lambda x: x[picked], s, s - 0.5)).max()) == 0  # at first the schedule alone draws
    huge = jax.tree.map(lambda x: x * 1e3 + 1, params["policy"])
    score = m.policy({"policy": huge}, z, w, lambda x: x[picked], s, s - 0.5)
    assert 0 < float(jnp.abs(score).max()) <= 1.0


def test_a_score_of_the_policy_belongs_to_the_picked_column():
    m = model()
    params = jax.tree.map(lambda x: x + 0.1, jax.jit(m.init)(jax.random.key(0))["policy"])
    z, w = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (jax.random.normal(jax.random.key(n), (n, 16)) for n in (4, 9)))
    picked = jnp.asarray([[0, 3, 5], [8, 1, 2], [7, 4, 6], [2, 0, 8]])
    same = jnp.full(picked.shape, 0.1)  # equal similarities: the columns alone differ
    score = m.policy({"policy": params}, z, w, lambda x: x[picked], same, same)
    assert float(jnp.abs(jnp.diff(score, axis=1)).min()) > 1e-4
    turned = m.policy({"policy": params}, z, w, lambda x: x[picked[:, ::-1]], same, same)
    chex.assert_trees_all_close(turned, score[:, ::-1], rtol=1e-5)


def test_attention_for_several_captions_an_anchor_is_that_for_one_at_a_time():
    m = model()
    params = jax.jit(m.init)(jax.random.key(0))
    anchor = jax.jit(m.encode_image)(params, IMAGES)
    ids = [jax.random.randint(jax.random.key(n), (IMAGES.shape[0], 5), 1, tiny.VOCABULARY) for n in range(2)]
    texts = [jax.jit(m.encode_text)(params, one, jnp.ones(one.shape, bool)) for one in ids]
    found = m.attend_each(params, jax.tree.map(lambda *x: jnp.stack(x), *texts), anchor)
    expected = [m.attend(params, text, anchor) for text in texts]
    chex.assert_trees_all_close(found, jax.tree.map(lambda *x: jnp.stack(x), *expected), rtol=1e-5)


def test_bfloat16_computes_low_and_returns_float32_embeddings():
    config = tiny.config()
    low = Model(dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16")), tiny.VOCABULARY)
    params = jax.jit(low.init)(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    found = jax.jit(low.encode_image)(params, IMAGES)
    assert (found.pooled.dtype, found.tokens.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("side", [(1, 1), (2, 2), (3, 4), (1, 4), (6, 5)])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 2), (4, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_over_a_small_grid_is_one_matrix_product(side, kernel, stride):
    random = np.random.default_rng(0)
    x, weights = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((3, *side, 5), (*kernel, 5, 7)))
    arguments = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    found = vision.convolve(x, weights, (stride, stride), "SAME", **arguments)
    np.testing.assert_allclose(found, jax.lax.conv_general_dilated(x, weights, (stride, stride), "SAME", **arguments), atol=2e-5)
    text = jax.jit(lambda x: vision.convolve(x, weights, (stride, stride), "SAME", **arguments)).lower(x).as_text()
    assert ("stablehlo.convolution" in text) == (found.shape[1] * found.shape[2] > vision.SMALL_GRID)
    assert ("stablehlo.convolution" in text) == (found.shape[1] * found.shape[2] > 4)


def test_a_convolution_by_a_kernel_larger_than_the_picture_is_empty():
    assert (
        vision.convolve(jnp.ones((3, 2, 2, 5)), jnp.ones((3, 3, 5, 7)), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")).size
        == 0
    )


def test_at_patch_8_only_the_stem_and_the_fine_blocks_are_convolutions():
    config = tiny.config()
    image = dataclasses.replace(config.model.image, kind="conv", patch=8, depth=2)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, image=image), data=dataclasses.replace(config.data, image_size=32)
    )
    m = Model(config, tiny.VOCABULARY)
    images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    text = jax.jit(m.encode_image).lower(jax.eval_shape(m.init, jax.random.key(0)), images).as_text()
    assert text.count("stablehlo.convolution(") == 1 + 2
