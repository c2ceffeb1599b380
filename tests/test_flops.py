"""Exact numbers for programs small enough to count by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bacl_jax.config import MeshConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.train.flops import count

W, X = jnp.ones((4, 4)), jnp.ones((3, 4))
ONE = 2 * 3 * 4 * 4  # of X @ W


def test_products():
    assert count(jnp.matmul, X, W) == ONE
    assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), jnp.ones((5, 2, 3)), jnp.ones((5, 3, 4))) == 5 * 2 * 2 * 3 * 4
    assert count(lambda x: jnp.exp(x) + x, X) == 0


def test_shapes_are_enough():
    assert count(jnp.matmul, jax.ShapeDtypeStruct((10**6, 4), jnp.float32), jax.ShapeDtypeStruct((4, 4), jnp.bfloat16)) == 2 * 10**6 * 16


def convolve(x, kernel, **options):
    return jax.lax.conv_general_dilated(
        x, kernel, **({"window_strides": (1, 1), "padding": "SAME"} | options), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_convolutions_without_padding_and_without_what_lies_between_dilated_inputs():
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))
    patches = 2 * 2 * 4 * (4 * 4 * 3) * 5
    assert count(lambda x, k: convolve(x, k, window_strides=(4, 4), padding="VALID"), x, kernel) == patches
    assert count(jax.grad(lambda k, x: convolve(x, k, window_strides=(4, 4), padding="VALID").sum()), kernel, x) == patches
    assert count(jax.grad(lambda x, k: convolve(x, k, window_strides=(4, 4), padding="VALID").sum()), x, kernel) == patches
    three = jnp.ones((3, 3, 3, 5))
    inside = (8 + 7 + 7) ** 2  # pairs of a place and a tap inside the picture
    assert count(convolve, x, three) == 2 * 2 * inside * 3 * 5


def test_a_loop_counts_in_full():
    def steps(w, x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0].sum()

    assert count(steps, W, X) == 7 * ONE
    assert count(jax.grad(steps), W, X) == 7 * 3 * ONE
    assert count(lambda w, x: jax.lax.map(lambda one: one @ w, jnp.stack([x] * 5)), W, X) == 5 * ONE


def test_what_is_made_again_counts_again():
    def twice(w, x):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    forward, backward = 2 * ONE, 3 * ONE  # without the gradient of x
    assert count(lambda w, x: jax.value_and_grad(lambda w: twice(w, x).sum())(w), W, X) == forward + backward
    again = jax.checkpoint(twice)
    assert count(lambda w, x: jax.value_and_grad(lambda w: again(w, x).sum())(w), W, X) == 2 * forward + backward


def test_rules_of_ones_own_are_walked():
    @jax.custom_vjp
    def product(w, x):
        return x @ w

    product.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (kept[1].T @ g, g @ kept[0].T))
    assert count(product, W, X) == ONE
    assert count(jax.value_and_grad(lambda w, x: product(w, x).sum(), (0, 1)), W, X) == 3 * ONE


def test_a_conditional_is_its_dearest_branch():
    assert count(lambda p, w, x: jax.lax.cond(p, lambda: x @ w @ w, lambda: x @ w), True, W, X) == 2 * ONE


def test_each_device_of_a_shard_map_counts():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    function = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False)
    assert count(function, jnp.ones((12, 4)), W) == 8 * ONE  # the two devices along fsdp each do the same


def test_what_nothing_uses_does_not_count():
    assert count(lambda w, x: (x @ w, x)[1], W, X) == 0
    assert count(jax.jit(lambda w, x: (x @ w @ w, x @ w)[1]), W, X) == ONE


def test_a_loop_whose_turns_are_unknown_is_refused():
    with pytest.raises(ValueError, match="number of turns"):
        count(lambda w: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, w), W)
    assert count(lambda n: jax.lax.while_loop(lambda x: x < 9, lambda x: x + 1, n), np.float32(0)) == 0
