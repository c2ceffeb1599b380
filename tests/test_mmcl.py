"""The general contrastive loss against a few lines of numpy, the identity of its gradient in float64, and what changes nothing."""

from pathlib import Path

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from bacl_jax.objective import infonce as infonce_term
from bacl_jax.objective import mmcl
from bacl_jax.objective.tile import Tile

OWN = mmcl.Form(phi=jnp.log1p, psi=lambda u: jnp.exp(u / 2) + 0.1 * u**2, eps=0.5, nu=0.7)  # a user's form
FORMS = {name: make() for name, make in mmcl.FORMS.items()} | {"own": OWN}
MOST = 12  # pairs, features and dimensions of a problem that is drawn
SOFTPLUS = lambda u: np.logaddexp(0, u)  # noqa: E731
NUMPY = {  # phi, psi, eps, nu, whether A is a mean, and the attraction, written out
    "infonce": (np.log, np.exp, 1, 1, False, None),
    "linear": (lambda a: a, lambda u: u, 0, 1, True, None),
    "softplus": (lambda a: a, SOFTPLUS, 0, 1, True, None),
    "hinge": (lambda a: a, lambda u: 0.1 * SOFTPLUS((u + 1) / 0.1), 0, 1, True, None),
    "sigmoid": (lambda a: a, SOFTPLUS, 0, 0, False, lambda s: SOFTPLUS(-s)),
    "gce": (lambda a: (1 - a**-0.5) / 0.5, np.exp, 1, 1, False, None),
    "ramp": (lambda a: a, lambda u: 1 / (1 + np.exp(-u)), 0, 1, True, None),
    "own": (np.log1p, lambda u: np.exp(u / 2) + 0.1 * u**2, 0.5, 0.7, False, None),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64():
        yield


def reference(s, phi, psi, eps, nu, mean, attraction):
    """Eq. 2.1, one row at a time."""
    n, total = len(s), 0.0
    for i in range(n):
        for side in (s, s.T):
            negatives = [psi(side[i, j] - nu * s[i, i]) for j in range(n) if j != i]
            total += phi(eps * psi(0.0) + (np.mean(negatives) if mean else np.sum(negatives)))
            total += attraction(s[i, i]) if attraction else 0.0
    return total / (2 * n)


def problem(n, f, g, r, scale, seed=0):
    draw = np.random.default_rng(seed).normal
    return draw(size=(r, f)) * scale, draw(size=(r, g)), draw(size=(n, f)), draw(size=(n, g))


def similarities(g1, g2, x, y):
    return (x @ g1.T) @ (y @ g2.T).T


def relative(found, wanted):
    return float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))


@jax.jit(static_argnames="name")
def gradients(g1, g2, x, y, counts, name):
    """Those that JAX takes, and those of the identity."""
    form = FORMS[name]
    taken = jax.grad(lambda g: mmcl.loss(similarities(*g, x, y), form, counts))((g1, g2))
    s = mmcl.cross_covariance(x, y, mmcl.beta_weights(similarities(g1, g2, x, y), form, counts))
    return taken, (-g2 @ s.T, -g1 @ s)


@pytest.mark.parametrize("name", FORMS)
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(
    shape=st.tuples(st.integers(2, MOST), *(st.integers(1, MOST),) * 3), scale=st.floats(1e-3, 2.0), seed=st.integers(0, 2**16)
)
def test_a_gradient_is_a_power_step_of_the_contrastive_cross_covariance(name, shape, scale, seed):
    """Of any n, F, G and r; filled up with zeros, and with pairs that count for nothing, to one size: a form is compiled once."""
    arrays = problem(*shape, scale, seed)
    hypothesis.assume(np.abs(similarities(*arrays)).max() < 30)
    filled = [np.pad(a, [(0, MOST - size) for size in a.shape]) for a in arrays]
    counts = np.logical_and.outer(*[np.arange(MOST) < shape[0]] * 2)
    for taken, said in zip(*gradients(*filled, counts, name), strict=True):
        assert relative(said, taken) < 1e-9


@pytest.mark.parametrize("name", FORMS)
def test_equals_numpy(name):
    for seed, n in enumerate((2, 3, 11)):
        s = similarities(*problem(n, 4, 5, 3, 0.4, seed))
        chex.assert_trees_all_close(mmcl.loss(jnp.asarray(s), FORMS[name]), jnp.asarray(reference(s, *NUMPY[name])), rtol=1e-12)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_infonce_is_the_term_of_the_trainer(tau):
    s = jnp.asarray(similarities(*problem(8, 4, 5, 3, 0.5)))
    term, own = infonce_term.term("positive"), jnp.eye(8, dtype=bool)
    tile = Tile(s / tau, s / tau, own, own, jnp.zeros_like(s), jnp.zeros_like(s))
    rows, columns = (term.end(term.add(term.start(8), tile, axis))[0].mean() for axis in (1, 0))
    chex.assert_trees_all_close(mmcl.loss(s, mmcl.infonce(tau)), tau * (rows + columns) / 2, rtol=1e-6)


def test_infonce_is_finite_where_exp_is_not():
    s = jnp.asarray(similarities(*problem(8, 4, 5, 3, 1.0))) * 1e4
    value, gradient = jax.value_and_grad(lambda s: mmcl.loss(s, mmcl.infonce(0.01)))(s)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_the_robust_form_becomes_infonce_as_q_falls():
    s = jnp.asarray(similarities(*problem(8, 4, 5, 3, 0.5)))
    chex.assert_trees_all_close(mmcl.loss(s, mmcl.gce(1e-8)), mmcl.loss(s, mmcl.infonce()), rtol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_neither_order_nor_side_matters(name):
    s = jnp.asarray(similarities(*problem(7, 4, 5, 3, 0.5)))
    order = np.random.default_rng(0).permutation(7)
    for other in (s[order][:, order], s.T):
        chex.assert_trees_all_close(mmcl.loss(other, FORMS[name]), mmcl.loss(s, FORMS[name]), rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in FORMS if FORMS[name].nu == 1])
def test_with_nu_1_only_differences_from_the_pair_count(name):
    s = jnp.asarray(similarities(*problem(7, 4, 5, 3, 0.5)))
    chex.assert_trees_all_close(mmcl.loss(s + 3.0, FORMS[name]), mmcl.loss(s, FORMS[name]), rtol=1e-10)
    chex.assert_trees_all_close(mmcl.beta_weights(s, FORMS[name]).sum(), jnp.zeros(()), atol=1e-12)


def test_the_linear_weights_give_the_centred_cross_covariance():
    g1, g2, x, y = problem(30, 4, 5, 3, 0.5)
    beta = mmcl.beta_weights(jnp.asarray(similarities(g1, g2, x, y)), mmcl.linear())
    wanted = (x - x.mean(0, keepdims=True)).T @ (y - y.mean(0, keepdims=True)) / 29
    chex.assert_trees_all_close(mmcl.cross_covariance(jnp.asarray(x), jnp.asarray(y), beta), jnp.asarray(wanted), rtol=1e-10)


def test_a_robust_form_spares_the_pair_that_the_model_holds_for_wrong():
    s = 4 * jnp.eye(6) - 12 * jnp.eye(6)[:, :1] * jnp.eye(6)[:1]
    pull = {name: jnp.diagonal(mmcl.beta_weights(s, FORMS[name])) for name in ("infonce", "gce", "ramp")}
    assert pull["infonce"][0] > pull["infonce"][1:].max()
    assert pull["gce"][0] < pull["infonce"][0] / 10
    assert pull["ramp"][0] < pull["ramp"][1:].min()


def test_the_form_of_the_documents_is_infonce():
    text = (Path(__file__).parents[1] / "docs/theory.md").read_text()
    z, w, x, y = (jnp.asarray(np.random.default_rng(seed).normal(size=(6, 4))) for seed in range(4))
    made = {"z": z, "w": w, "x": x, "y": y}
    exec(text[text.index("from bacl_jax.objective import mmcl") :].partition("```")[0], made)
    chex.assert_trees_all_close(made["value"], mmcl.loss(z @ w.T, mmcl.infonce(0.07)), rtol=1e-12)
    chex.assert_trees_all_close(made["beta"], mmcl.beta_weights(z @ w.T, mmcl.infonce(0.07)), rtol=1e-12)
