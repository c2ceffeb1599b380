"""CLA: alignment of two captions, dA, Omega, and the gradients of L_local."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.config_objective import CLAConfig
from bacl_jax.objective import cla

T, P = 8, 12
WORDS = {w: i + 4 for i, w in enumerate(["a", "b", "c", "d", "e", "f", "g"])}


def encode(*captions):
    ids, mask = np.zeros((len(captions), T), np.int32), np.zeros((len(captions), T), bool)
    for i, caption in enumerate(captions):
        row = [1, *(WORDS[w] for w in caption.split()), 2]
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return jnp.asarray(ids), jnp.asarray(mask)


def attention(seed, n=1):
    return jax.nn.softmax(jnp.asarray(np.random.default_rng(seed).normal(size=(n, T, P)), jnp.float32), axis=-1)


@pytest.mark.parametrize(
    ("one", "other", "prefix", "suffix", "span", "other_span"),
    [
        ("a b c", "a d c", [1], [3], [2], [2]),
        ("a b c", "a b d", [1, 2], [], [3], [3]),
        ("b c", "a c", [], [2], [1], [1]),
        ("a b c d", "a e d", [1], [4], [2, 3], [2]),
        ("a d", "a b c d", [1], [2], [], [2, 3]),
        ("a b c d", "a d", [1], [4], [2, 3], []),
        ("a b", "c d", [], [], [1, 2], [1, 2]),
        ("a a", "a", [1], [], [2], []),
        ("a", "a a", [1], [], [], [2]),
        ("a b c", "a b c", [1, 2, 3], [], [], []),
    ],
)
def test_align(one, other, prefix, suffix, span, other_span):
    got = cla.align(*encode(one), *encode(other))
    found = [np.flatnonzero(np.asarray(x[0])).tolist() for x in got[:4]]
    assert found == [prefix, suffix, span, other_span]
    assert int(got[4][0]) == len(other.split()) - len(one.split())


def test_delta_compares_the_suffix_counted_from_the_end_and_the_span_as_means():
    one, other = encode("a b c d"), encode("a e d")
    plus, minus = attention(0), attention(1)
    delta = cla.delta_attention(*one, plus, *other, minus)[0]
    chex.assert_trees_all_close(delta[1], jnp.abs(plus[0, 1] - minus[0, 1]))
    chex.assert_trees_all_close(delta[4], jnp.abs(plus[0, 4] - minus[0, 3]))
    chex.assert_trees_all_close(delta[2], jnp.abs(plus[0, 2:4].mean(0) - minus[0, 2]), rtol=1e-5)
    assert float(jnp.abs(delta[jnp.asarray([0, 3, 5, 6, 7])]).max()) == 0


def test_same_caption_same_attention_is_no_difference():
    one = encode("a b c")
    assert float(jnp.abs(cla.delta_attention(*one, attention(0), *one, attention(0))).max()) == 0


def local(minus, plus, beta=1.0, stop="none", captions=("a b c", "a d c")):
    config = CLAConfig(beta=beta, stop_gradient=stop)
    p, m, rows, aligned = cla.aligned_attention(*encode(captions[0]), plus, *encode(captions[1]), minus)
    return cla.mean_of(cla.local_loss(p, m, rows, config), aligned)


def test_local_loss_equals_numpy():
    plus, minus = attention(0), attention(1)
    p, m = np.asarray(plus[0, 1:4]), np.asarray(minus[0, 1:4])
    delta = np.abs(p - m).ravel()
    omega = np.argsort(-delta)[:10]
    expected = -np.log(m.ravel()[omega] * (1 + delta[omega]) + cla.TINY).mean()
    assert float(local(minus, plus)) == pytest.approx(expected, rel=1e-5)


def test_gradient_flows_through_delta():
    plus, minus = attention(0), attention(1)
    grads = [jax.grad(lambda m, b=b: local(m, plus, beta=b))(minus) for b in (0.0, 0.5, 1.0)]
    assert float(jnp.abs(grads[0] - grads[1]).max()) > 1e-3
    assert float(jnp.abs(grads[1] - grads[2]).max()) > 1e-3


@pytest.mark.parametrize(("stop", "flows"), [("none", True), ("positive", False), ("all", False)])
def test_stop_gradient_cuts_the_positive_attention(stop, flows):
    grad = jax.grad(lambda p: local(attention(1), p, stop=stop))(attention(0))
    assert bool(jnp.abs(grad).max() > 0) == flows


def test_all_stops_the_effect_of_delta_on_the_negative_attention():
    """With dA cut, d/dA- of -log(A- (1 + beta dA)) is -1/A-: beta has no effect, up to the guard inside the log."""
    grads = [jax.grad(lambda m, b=b: local(m, attention(0), beta=b, stop="all"))(attention(1)) for b in (0.0, 1.0)]
    chex.assert_trees_all_close(grads[0], grads[1], rtol=1e-3)


def test_unaligned_pairs_leave_the_loss():
    assert float(local(attention(1), attention(0), captions=("a b", "c d"))) == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_attention_stays_finite(dtype):
    plus = jnp.zeros((1, T, P), dtype).at[:, :, 0].set(1)
    minus = jnp.zeros((1, T, P), dtype).at[:, :, 1].set(1)
    value, grad = jax.value_and_grad(local)(minus, plus)
    assert bool(jnp.isfinite(value))
    assert bool(jnp.isfinite(grad).all())


def test_match_loss_at_chance_and_unused_rows():
    zero = jnp.zeros(4)
    assert float(cla.match_loss(zero, zero[None], jnp.ones((1, 4), bool))) == pytest.approx(np.log(2))
    alone = cla.match_loss(zero, zero[None] + 9, jnp.zeros((1, 4), bool))
    assert float(alone) == pytest.approx(np.log(2) / 2)
    no_pair = cla.match_loss(zero, zero[None], jnp.zeros((1, 4), bool), jnp.zeros(4, bool))
    assert float(no_pair) == 0
    some = cla.match_loss(zero, jnp.asarray([[0.0] * 4, [9.0] * 4]), jnp.asarray([[True] * 4, [False] * 4]))
    assert float(some) == pytest.approx(np.log(2))
