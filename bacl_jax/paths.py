"""Parameters named by their paths, and the part of them that is trained.

A pattern is a regular expression that matches the whole path of a parameter, such as towers/text/(?!head/).* .
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from bacl_jax.config import ConfigError

SHOWN = 4  # paths in the message about a pattern that matches none


def named(params: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of each parameter, in the order of the tree."""
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in jax.tree.leaves_with_path(params)]


def matches(patterns: Iterable[str], path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def check(patterns: Sequence[str], params: Any, field: str) -> None:
    """ConfigError where one of the patterns that stand in config.<field> matches no parameter."""
    paths = [path for path, _ in named(params)]
    for pattern in patterns:
        if not any(matches([pattern], path) for path in paths):
            some = ", ".join(paths[:: max(1, len(paths) // SHOWN)][:SHOWN])
            raise ConfigError(
                f"config.{field}: {pattern!r} matches the whole path of no parameter; there are {len(paths)}, among them {some}; "
                f"set it with --config.{field}=\"('pattern',)\""
            )


def check_frozen(patterns: Sequence[str], params: Any) -> None:
    """ConfigError where a pattern of config.optim.frozen matches no parameter, or where together they match all."""
    check(patterns, params, "optim.frozen")
    if not trained(params, patterns):
        raise ConfigError(
            f"config.optim.frozen = {tuple(patterns)!r}: all {len(named(params))} parameters are frozen, none is left to train; "
            "leave some out, as in towers/text/(?!head/).*"
        )


def trained(params: Any, frozen: Sequence[str], under: str = "") -> Any:
    """The part of nested dicts of parameters whose paths match no pattern; a dict that loses all that it holds is left out itself."""
    if not frozen:
        return params
    part = {}
    for name, value in params.items():
        if isinstance(value, dict):
            if inside := trained(value, frozen, f"{under}{name}/"):
                part[name] = inside
        elif not matches(frozen, f"{under}{name}"):
            part[name] = value
    return part


def replaced(params: Any, part: Any) -> Any:
    """`params` with the leaves that `part`, a part of it as `trained` gives it, has in their place."""
    if not isinstance(params, dict):
        return part
    return {name: replaced(value, part[name]) if name in part else value for name, value in params.items()}


def summary(params: Any, frozen: Sequence[str]) -> str:
    """One line: how many parameters are trained and how many are frozen."""
    sizes = {True: 0, False: 0}
    for path, leaf in named(params):
        sizes[matches(frozen, path)] += math.prod(leaf.shape)
    return f"{sizes[False]:,} parameters are trained, {sizes[True]:,} are frozen"
