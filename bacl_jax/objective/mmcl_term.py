"""MMCL's general loss (arXiv 2302.06232, eq. 2.1; mmcl.py) as a contrastive term of the trainer, with the places where BNS enters.

    L = mean_i phi(A_i) over rows and columns, then over both,   u_ij = l_ij - nu l_ii,   l = scale * cosine
    A_i = eps psi(0) + sum_j (1 + weight_ij) psi(u_ij) + sum_e psi(drawn_ie - nu l_ii),   j over the pairs of another caption and anchor

The pair itself is the one positive. weight: k q on BNS's in-batch candidates; drawn: re-encoded captions, for the rows alone. With `mean`
the sums are divided by B - 1. The form `infonce` is InfoNCE with the other positives left out, value and gradient.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bacl_jax.config_objective import MMCLConfig, ObjectiveConfig
from bacl_jax.objective.mmcl import FORMS, Form, each, loss, slope
from bacl_jax.objective.similarity import MASKED
from bacl_jax.objective.tile import Side, Term, Tile
from bacl_jax.settings import ConfigError


def form_of(config: MMCLConfig) -> Form:
    """The form that a config names, with the options set there. ConfigError where there is none, or it does not take one of them."""
    name, field = config.form, f"config.objective.mmcl.form = {config.form!r}"
    make = FORMS[name] if name in FORMS else _imported(name, field)
    options = {key: value for key in ("q", "margin", "tau") if (value := getattr(config, key)) is not None}
    for key, value in options.items():
        if not _takes(make, key):
            raise ConfigError(f"config.objective.mmcl.{key} = {value}: the form {name} takes no {key}; leave it None")
    try:
        form = make(**options)
    except Exception as error:  # the function is the user's, and may raise anything
        call = f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})"
        raise ConfigError(f"{field}: {call} raised {_said(error)}; it must return a bacl_jax.objective.mmcl.Form") from error
    if not isinstance(form, Form):
        raise ConfigError(f"{field}: gives {type(form).__name__}, must give a bacl_jax.objective.mmcl.Form")
    if form.attraction is not None:
        raise ConfigError(f"{field}: a form with an attraction is none of the trainer's; for SigLIP's loss take objective.kind = sigmoid")
    return dataclasses.replace(form, **{key: value for key in ("eps", "nu") if (value := getattr(config, key)) is not None})


def _takes(function: Callable[..., Any], option: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # of a builtin that tells none; the call will tell
        return True
    return option in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _imported(name: str, field: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing runs the user's code, which may raise anything
        named = ", ".join(form for form in FORMS if form != "sigmoid")
        raise ConfigError(f"{field}: must be one of {named}, or module:function of your own ({_said(error)})") from error
    if not callable(found):
        raise ConfigError(f"{field}: {function} of {module} is no function")
    return found


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def check(objective: ObjectiveConfig) -> None:
    """ConfigError where the form of kind = "mmcl" cannot be made, or loss or gradient of two pairs is not finite at the largest scale."""
    if objective.kind != "mmcl":
        return
    form, scale = form_of(objective.mmcl), objective.max_scale
    graded = jax.jit(jax.value_and_grad(lambda s: loss(s, form)))
    for worst in (-scale, scale):  # each pair the least similar, or the most
        found = graded(jnp.asarray([[worst, -worst], [-worst, worst]], jnp.float32))
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in found):
            raise ConfigError(
                f"config.objective.mmcl.form = {objective.mmcl.form!r}: loss or gradient is not finite where a pair's logit is {worst:g} "
                f"and a negative's {-worst:g}, as objective.max_scale = {scale:g} allows; lower that, or take a form that is finite "
                "(log_space = True where psi grows like an exponential)"
            )


def offset(rows: Side, columns: Side, scale: Float[Array, ""], form: Form) -> Float[Array, " B"]:
    """-nu l_ii of every pair, with its gradient: what makes u of a logit. O(B D), nothing leaves its device."""
    return -form.nu * scale * (rows.x.astype(jnp.float32) * columns.x.astype(jnp.float32)).sum(1)


def term(form: Form, size: int) -> Term:
    """phi(A_i) of `size` pairs, one value a row and one a column. Sides need their `offset`; no floor is known: 0.

    The running sums are A (log A where the form is in log space) and dA / d offset = sum_j (1 + weight) psi'(u), in log space relative
    to A. From both `end` makes what the backward pass needs, so that a row's offset gets its gradient where the row is.
    """
    zero = each(form.psi, jnp.zeros(()))
    share = size - 1 if form.mean else 1

    def add_entries(sums: tuple[Array, Array], u: Array, weight: Array | float, counts: Array, axis: int) -> tuple[Array, Array]:
        total, change = sums
        u = jnp.where(counts, u, 0)
        if not form.log_space:
            weight = jnp.where(counts, (1 + weight) / share, 0)
            return total + (weight * each(form.psi, u)).sum(axis), change + (weight * slope(form.psi, jax.lax.stop_gradient(u))).sum(axis)
        entry = jnp.where(counts, each(form.psi, u) + jnp.log1p(weight) - jnp.log(share), MASKED)
        new = jnp.logaddexp(total, jax.nn.logsumexp(entry, axis))
        old, entry, fixed, u = jax.lax.stop_gradient((total, entry, new, u))
        part = jnp.exp(entry - jnp.expand_dims(fixed, axis)) * slope(form.psi, u)
        return new, change * jnp.exp(old - fixed) + jnp.where(counts, part, 0).sum(axis)

    def differences(tile: Tile, axis: int) -> tuple[Array, Array, Array]:
        """u, the weights and which entries count."""
        assert tile.row_offset is not None
        assert tile.column_offset is not None
        counts = ~tile.positive & ~tile.own if tile.left_out is None else ~tile.positive & ~tile.own & ~tile.left_out
        if axis == 1:
            return tile.logits + tile.row_offset[:, None], tile.row_weight, counts
        return tile.logits + tile.column_offset[None], tile.column_weight, counts

    def add(sums: tuple[Array, Array], tile: Tile, axis: int) -> tuple[Array, Array]:
        return add_entries(sums, *differences(tile, axis), axis)

    def end(sums: tuple[Array, Array]) -> tuple[Array, Array, tuple[Array, Array, Array]]:
        total, change = sums
        if form.log_space:  # a row without any entry: phi(0), a constant
            total = jnp.where(total > MASKED / 2, total, 0)
        outer = slope(form.phi, jax.lax.stop_gradient(total))
        return each(form.phi, total), jnp.zeros_like(total), (total, outer, outer * change)

    def pull(u: Array, weight: Array | float, counts: Array, incoming: tuple, axis: int) -> Array:
        """d loss / d u, of one direction."""
        g, (total, outer, _) = incoming
        u, a_row = jnp.where(counts, u, 0), lambda x: jnp.expand_dims(x, axis)
        weight = (1 + weight) / share * slope(form.psi, u)
        if form.log_space:
            weight *= jnp.exp(jnp.where(counts, each(form.psi, u) - a_row(total), 0))
        return jnp.where(counts, a_row(g * outer) * weight, 0)

    def start(rows: int) -> tuple[Array, Array]:
        if not form.log_space:
            return jnp.full(rows, form.eps * zero), jnp.zeros(rows)
        return jnp.full(rows, zero + jnp.log(form.eps) if form.eps > 0 else MASKED), jnp.zeros(rows)

    return Term(
        start=start,
        add=add,
        add_drawn=lambda sums, u, valid: add_entries(sums, u, 0.0, valid, 1),
        end=end,
        grad=lambda tile, row, column: pull(*differences(tile, 1), row, 1) + pull(*differences(tile, 0), column, 0),
        grad_drawn=lambda u, valid, row: pull(u, 0.0, valid, row, 1),
        grad_offset=lambda row: row[0] * row[1][2],
    )
