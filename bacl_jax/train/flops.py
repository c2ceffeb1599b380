"""Floating-point operations of a program, counted from its jaxpr: every loop in full, unlike XLA's `cost_analysis`.

Counted are matrix products and convolutions, 2 a multiply-add; all else is left out (below 2 % of a transformer's step). A scan counts its
body times its length, a shard_map its body times the devices that it is spread over, a conditional its dearest branch. What is made again
in the backward pass (`jax.checkpoint`, custom rules, micro-batches) is in the jaxpr as often as it runs. So the sum is that of the whole
mesh, and what the compiler removes later as unused is in it: `count` removes it first.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of function(*arguments), over all devices; arguments may be jax.ShapeDtypeStruct. Traces, and compiles nothing.

    ValueError where the number of turns of a loop that multiplies matrices is not in the program.
    """
    jitted: Any = function if hasattr(function, "trace") else jax.jit(function)  # make_jaxpr takes no function with compiler options
    closed = jitted.trace(*arguments).jaxpr
    used, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return of_jaxpr(used)


def of_jaxpr(jaxpr: core.Jaxpr) -> float:
    """FLOPs of a jaxpr."""
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return max(of_jaxpr(branch.jaxpr) for branch in params["branches"])
    inside = sum(of_jaxpr(jaxpr) for jaxpr in _jaxprs(params))
    if name == "scan":
        return inside * params["length"]
    if name == "while" and inside:
        raise ValueError("a while loop multiplies matrices, and its number of turns is not in the program: use jax.lax.scan")
    if name == "shard_map":
        return inside * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return inside


def _jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def _dot(equation: core.JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = _shape(equation.invars[0])
    return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(shape[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> float:
    """Products with padding and with the zeros between dilated inputs are none."""
    params, (left, right), (out,) = equation.params, equation.invars, equation.outvars
    numbers = params["dimension_numbers"]
    _, inputs, *kernel = (_shape(right)[axis] for axis in numbers.rhs_spec)
    batch, features, *outputs = (_shape(out)[axis] for axis in numbers.out_spec)
    sizes = (_shape(left)[axis] for axis in numbers.lhs_spec[2:])
    pairs = 1
    each = zip(
        sizes, kernel, outputs, params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"], strict=True
    )
    for size, taps, places, stride, (before, _), spread, apart in each:
        at = np.arange(places)[:, None] * stride - before + np.arange(taps)[None] * apart
        pairs *= int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())
    return 2.0 * batch * features * inputs * pairs


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
