"""MMCL's forms as a contrastive term: the equation by hand, InfoNCE as one of them, one value and one gradient in every way."""

import dataclasses
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bacl_jax.config import Config, ConfigError, MeshConfig, from_config_dict
from bacl_jax.config_objective import MMCLConfig, ObjectiveConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.objective import mmcl
from bacl_jax.objective.contrast import contrast
from bacl_jax.objective.mmcl_term import check, form_of
from bacl_jax.objective.shards import Shards
from bacl_jax.objective.similarity import Rows, positives
from bacl_jax.objective.tile import Side, scatter

B, D, K, E = 16, 6, 3, 5
WAYS = [("dense", ()), ("chunked", ()), ("ring", ()), ("dense", (8, 1, 1)), ("chunked", (2, 2, 2)), ("ring", (2, 2, 2))]
MASK = ObjectiveConfig(same_id="mask")
FORMS = ("infonce", "linear", "softplus", "hinge", "gce", "ramp")


def objective(form, how="dense", **options):
    return dataclasses.replace(MASK, kind="mmcl", contrast=how, mmcl=MMCLConfig(form=form, **options))


def shards(*shape, tile=4, parts=1):
    return Shards(make_mesh(MeshConfig(*shape)) if shape else None, tile, parts)


def problem(k=K, e=E, lonely=()):
    """Pairs with repeated captions and pictures, candidates that are no positives, drawn captions; `lonely` rows lack a partner."""
    r = np.random.default_rng(0)
    unit = lambda *shape: jnp.asarray((x := r.normal(size=shape)) / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)  # noqa: E731
    ids = lambda n, of: jnp.asarray(np.stack([r.integers(0, of, n), np.zeros(n)], 1).astype(np.uint32))  # noqa: E731
    known = {"caption_id": ids(B, 10), "anchor_id": ids(B, 10)}
    positive = np.asarray(positives(types.SimpleNamespace(**known), types.SimpleNamespace(**known)))
    paired = jnp.asarray(~np.isin(np.arange(B), lonely)) if lonely else None
    sides = []
    for _ in range(2):
        candidate = jnp.asarray(np.stack([r.choice(np.flatnonzero(~positive[i]), k, replace=False) for i in range(B)]).reshape(B, k))
        weight = jnp.asarray(r.random((B, k)), jnp.float32)
        sides.append(Side(x=unit(B, D), candidate=candidate, weight=weight, paired=paired, **known))
    return *sides, Rows(x=unit(e, D), valid=jnp.asarray(r.random(e) < 0.8), caption_id=ids(e, 14), anchor_id=ids(e, 14))


def graded(value, sides, scale=7.0):
    """(value, gradient) in both sides' embeddings, the drawn ones and the scale."""
    rows, columns, drawn = sides

    def of(z, w, d, scale):
        return value(*(dataclasses.replace(side, x=x) for side, x in ((rows, z), (columns, w), (drawn, d))), scale)

    return jax.jit(jax.value_and_grad(of, (0, 1, 2, 3)))(rows.x, columns.x, drawn.x, jnp.float32(scale))


def computed(config, layout, sides, scale=7.0):
    weight = None if sides[0].paired is None else sides[0].paired.astype(jnp.float32)
    return graded(lambda *a: contrast(*a[:3], scale=a[3], bias=None, weight=weight, config=config, shards=layout)[0], sides, scale)


def by_hand(form, rows, columns, drawn, scale):
    """The equation on whole matrices."""
    logits, extra = scale * rows.x @ columns.x.T, scale * rows.x @ drawn.x.T
    counts, own = ~positives(rows, columns) & ~jnp.eye(B, dtype=bool), jnp.diagonal(logits)
    share = B - 1 if form.mean else 1

    def psi(u):
        value = jnp.vectorize(form.psi)(u)
        return jnp.exp(value) if form.log_space else value

    def direction(logits, counts, side, others):
        weight = 1 + scatter(side.candidate, side.weight, 0, B)
        entries = jnp.where(counts, weight * psi(logits - form.nu * own[:, None]), 0).sum(1) + others
        total = form.eps * psi(jnp.zeros(())) + entries / share
        return jnp.vectorize(form.phi)(jnp.log(total) if form.log_space else total)

    valid = ~positives(rows, drawn) & drawn.valid[None]
    drawn_psi = jnp.where(valid, psi(extra - form.nu * own[:, None]), 0).sum(1)
    both = direction(logits, counts, rows, drawn_psi) + direction(logits.T, counts.T, columns, 0)
    return both.mean() / 2


def assert_same(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert float(jnp.linalg.norm(a - b)) <= tolerance * float(jnp.linalg.norm(b)) + 1e-7


@pytest.mark.parametrize(
    ("form", "how", "shape"),
    [*((form, "ring", ()) for form in FORMS), *((form, *way) for form in ("gce", "ramp") for way in (WAYS[0], WAYS[1], WAYS[5]))],
)
def test_value_and_every_gradient_are_those_of_the_equation(form, how, shape):
    config, sides = objective(form, how), problem()
    assert_same(computed(config, shards(*shape), sides), graded(functools.partial(by_hand, form_of(config.mmcl)), sides))


@pytest.mark.parametrize(("form", "options"), [("infonce", {"eps": 0.0, "nu": 0.5}), ("softplus", {"eps": 2.0, "nu": 0.0})])
def test_eps_and_nu_of_ones_own(form, options):
    config, sides = objective(form, "ring", **options), problem()
    assert_same(computed(config, shards(), sides), graded(functools.partial(by_hand, form_of(config.mmcl)), sides))


@pytest.mark.parametrize(("lonely", "how", "shape"), [((), "ring", ()), *(((2, 3, 11), *way) for way in WAYS)])
def test_one_of_them_is_infonce(lonely, how, shape):
    sides, layout = problem(lonely=lonely), shards(*shape, tile=2)
    expected = computed(dataclasses.replace(MASK, contrast="dense"), shards(), sides)
    assert_same(computed(objective("infonce", how), layout, sides), expected, 3e-6)


def test_without_extras_it_is_the_dense_loss_of_distinct_pairs():
    rows, columns, drawn = problem(k=0, e=0)
    number = jnp.stack([jnp.arange(B, dtype=jnp.uint32)] * 2, 1)
    rows, columns = (dataclasses.replace(side, caption_id=number, anchor_id=number) for side in (rows, columns))
    for form in ("gce", "ramp"):
        value, _ = computed(objective(form), shards(), (rows, columns, drawn))
        np.testing.assert_allclose(value, mmcl.loss(7 * rows.x @ columns.x.T, mmcl.FORMS[form]()), rtol=1e-5)


def test_a_tower_in_parts_gets_the_gradient_of_the_whole_batch():
    rows, columns, drawn = problem()
    tower = jax.random.normal(jax.random.key(0), (D, D))

    def value(tower, layout):
        z = layout.in_parts(lambda x: (y := x @ tower) / jnp.linalg.norm(y, axis=1, keepdims=True), rows.x)
        config = objective("gce", "ring")
        return contrast(dataclasses.replace(rows, x=z), columns, drawn, scale=jnp.float32(7), bias=None, config=config, shards=layout)[0]

    whole, parts = (jax.jit(jax.value_and_grad(value), static_argnums=1)(tower, shards(8, 1, 1, parts=n)) for n in (1, 2))
    assert_same(parts, whole)


@pytest.mark.parametrize(
    ("form", "how", "dtype"), [*((form, "ring", "float32") for form in ("infonce", "gce", "softplus")), ("gce", "dense", "bfloat16")]
)
def test_all_is_finite_at_the_largest_scale(form, how, dtype):
    """Pairs as unlike as can be: each difference is up to 200."""
    rows, columns, drawn = problem()
    against = dataclasses.replace(columns, x=-rows.x[::-1].at[3].set(rows.x[3]))
    sides = tuple(dataclasses.replace(side, x=side.x.astype(dtype)) for side in (rows, against, drawn))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(computed(objective(form, how), shards(), sides, 100.0)))


def test_a_wrong_pair_pulls_less_in_a_robust_form():
    """A row whose own text is the least similar of all: its share of the gradient in `gce` is far below that in `infonce`."""
    rows, columns, drawn = problem(k=0, e=0)
    columns = dataclasses.replace(columns, x=rows.x.at[0].set(-rows.x[0]))
    shares = {}
    for form in ("infonce", "gce", "ramp"):
        size = jnp.linalg.norm(computed(objective(form), shards(), (rows, columns, drawn), 10.0)[1][1], axis=1)
        shares[form] = float(size[0] / size.sum())
    assert shares["gce"] < shares["infonce"] / 3
    assert shares["ramp"] < shares["infonce"] / 3


def test_a_row_without_negatives_has_a_constant_loss():
    rows, columns, drawn = problem(k=0, e=0)
    same = jnp.zeros((B, 2), jnp.uint32)
    sides = (*(dataclasses.replace(side, caption_id=same) for side in (rows, columns)), drawn)
    value, gradient = computed(objective("gce", "ring", eps=0.0), shards(), sides)
    assert float(value) == 0
    assert all(float(jnp.abs(leaf).max(initial=0)) == 0 for leaf in jax.tree.leaves(gradient))


def test_a_form_of_ones_own():
    module = types.ModuleType("a_form_of_mine")
    squared = lambda tau=2.0: mmcl.Form(phi=lambda a: a, psi=lambda u: jax.nn.relu(1 + u / tau) ** 2, eps=0, nu=1, mean=True)  # noqa: E731
    vars(module).update(squared=squared, seven=lambda: 7, number=3, any_option=lambda **options: squared(**options))
    sys.modules["a_form_of_mine"] = module
    config, sides = objective("a_form_of_mine:squared", "ring", tau=3.0), problem()
    assert_same(computed(config, shards(), sides), graded(functools.partial(by_hand, squared(3.0)), sides))
    assert form_of(MMCLConfig(form="a_form_of_mine:any_option", tau=3.0)).psi(2.0) == squared(3.0).psi(2.0)
    for name, said in (("seven", "gives int"), ("number", "is no function"), ("none", "has no attribute 'none'")):
        with pytest.raises(ConfigError, match=said):
            form_of(MMCLConfig(form=f"a_form_of_mine:{name}"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "gse"}, "form = 'gse': must be one of infonce, linear, softplus, hinge, gce, ramp, or module:function"),
        ({"form": ".x:y"}, r"form = '\.x:y': must be one of .* of your own \(TypeError: the 'package' argument"),
        ({"form": "math:sqrt"}, r"math:sqrt\(\) raised TypeError: math.sqrt\(\) takes exactly one argument"),
        ({"form": "math:sqrt", "tau": 2.0}, "the form math:sqrt takes no tau"),
        ({"form": "builtins:dict", "tau": 2.0}, "gives dict, must give"),
        ({"form": "broken_form:form"}, r"of your own \(SyntaxError: '\(' was never closed"),
        ({"form": "raising_form:form"}, r"raising_form:form\(\) raised RuntimeError: two lines; it must return"),
        ({"form": "no_such.module:form"}, "No module named 'no_such'"),
        ({"form": "linear", "tau": 2.0}, "mmcl.tau = 2.0: the form linear takes no tau"),
        ({"form": "sigmoid"}, "take objective.kind = sigmoid"),
    ],
)
def test_a_form_that_cannot_be_made_is_one_clear_line(options, said, tmp_path, monkeypatch):
    (tmp_path / "broken_form.py").write_text("def form(")
    (tmp_path / "raising_form.py").write_text("def form():\n    raise RuntimeError('two\\nlines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=said) as raised:
        form_of(MMCLConfig(**options))
    assert "\n" not in str(raised.value)


def test_a_form_that_overflows_at_the_largest_scale_is_refused():
    sys.modules["another_form_of_mine"] = module = types.ModuleType("another_form_of_mine")
    vars(module).update(form=lambda: mmcl.Form(phi=jnp.log1p, psi=jnp.exp, eps=1, nu=1))
    own = MMCLConfig(form="another_form_of_mine:form")
    check(dataclasses.replace(MASK, kind="mmcl", max_scale=40.0, mmcl=own))
    with pytest.raises(ConfigError, match=r"not finite where a pair's logit is -60 and a negative's 60, as .*max_scale = 60"):
        check(dataclasses.replace(MASK, kind="mmcl", max_scale=60.0, mmcl=own))
    for form in FORMS:
        check(objective(form))


@pytest.mark.parametrize("form", FORMS)
def test_beta_weights_are_those_of_the_trainers_loss(form):
    """Rows of one caption or one picture are no negatives of each other."""
    config, (rows, columns, drawn) = objective(form), problem(k=0, e=0)
    (by_row, by_column, _, _) = computed(config, shards(), (rows, columns, drawn))[1]
    z, w = np.asarray(rows.x), np.asarray(columns.x)
    beta = np.asarray(mmcl.beta_weights(7 * rows.x @ columns.x.T, form_of(config.mmcl), ~positives(rows, columns)))
    assert_same((by_row, by_column), (-7 / B * beta @ w, -7 / B * beta.T @ z))


def test_options_reach_the_form():
    a = jnp.float32(3.0)
    np.testing.assert_allclose(form_of(MMCLConfig(q=0.3, tau=2.0)).phi(a), mmcl.gce(0.3, 2.0).phi(a))
    assert form_of(MMCLConfig(form="hinge", margin=3.0)).psi(a) == mmcl.hinge(3.0).psi(a)
    assert (form_of(MMCLConfig(eps=0.0, nu=0.5)).eps, form_of(MMCLConfig(eps=0.0, nu=0.5)).nu) == (0, 0.5)


def test_the_other_positives_must_be_left_out():
    with pytest.raises(ConfigError, match=r"objective.same_id = 'positive': must be mask where objective.kind is mmcl"):
        from_config_dict({"objective": {"kind": "mmcl"}})
    assert from_config_dict({"objective": {"kind": "mmcl", "same_id": "mask"}}) != Config()
