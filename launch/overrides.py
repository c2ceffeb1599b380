"""Generators of overrides, for the files of launch.sweep. An override maps names of config fields, as in "objective.bns.k", to values.

    def sweep():
        return product({"seed": (0, 1, 2)}, zip({"objective.bns.k": (8, 16), "objective.bns.pool": (16, 32)}))

Each takes settings, which map a field to the values that it has in turn, or overrides that another one has made.
"""

import builtins
import itertools
import math
import random as stdlib_random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bacl_jax.config import ConfigError

Override = dict[str, Any]
Settings = Mapping[str, Sequence[Any]]
Draw = Callable[[stdlib_random.Random], Any]

TRIES = 1000  # draws in a row that were all there before, after which `random` gives up


def product(*parts: Settings | Iterable[Override]) -> Iterator[Override]:
    """Every combination; the last field changes fastest."""
    choices = [choice for part in parts for choice in _choices(part)]
    for combination in itertools.product(*choices):
        yield _merged(combination)


def zip(settings: Settings) -> Iterator[Override]:
    """The fields change together: the first value of each, the second of each, and so on. ConfigError where one has more than another."""
    if len(lengths := {name: len(values) for name, values in settings.items()}) and len(set(lengths.values())) > 1:
        raise ConfigError(f"zip: each field needs as many values as the others; there are {lengths}")
    for values in builtins.zip(*settings.values(), strict=True):
        yield dict(builtins.zip(settings, values, strict=True))


def chain(*parts: Settings | Iterable[Override]) -> Iterator[Override]:
    """One part after another; of settings, every combination."""
    for part in parts:
        yield from product(part)


def random(settings: Mapping[str, Sequence[Any] | Draw], *, count: int, seed: int = 0) -> Iterator[Override]:
    """`count` different overrides, the same ones for a seed; the first of them do not change when `count` grows.

    A field has values to draw from, or says how to draw one, as `uniform` and `log_uniform` do. ConfigError where there are too few.
    """
    generator, found = stdlib_random.Random(seed), []
    for _ in range(count):
        for _ in range(TRIES):
            drawn = {name: how(generator) if callable(how) else generator.choice(how) for name, how in settings.items()}
            if drawn not in found:
                break
        else:
            raise ConfigError(f"random: count = {count}, but only {len(found)} different overrides were found; take a smaller count")
        found.append(drawn)
        yield drawn


def uniform(low: float, high: float, digits: int = 3) -> Draw:
    """For `random`: evenly between two numbers, rounded to significant digits."""
    return lambda generator: _rounded(generator.uniform(low, high), digits)


def log_uniform(low: float, high: float, digits: int = 3) -> Draw:
    """For `random`: evenly in the logarithm, as for learning rates, rounded to significant digits."""
    return lambda generator: _rounded(math.exp(generator.uniform(math.log(low), math.log(high))), digits)


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _choices(part: Settings | Iterable[Override]) -> Iterator[list[Override]]:
    """The factors of a product: of settings one for each field, else the overrides."""
    settings: Any = part
    if isinstance(settings, Mapping):
        for name, values in settings.items():
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise ConfigError(f"{name} = {values!r}: must be a tuple of the values that the field has in turn, as in ({values!r},)")
            yield [{name: value} for value in values]
    else:
        yield list(settings)


def _merged(combination: Iterable[Override]) -> Override:
    result: Override = {}
    for override in combination:
        if twice := sorted(result.keys() & override.keys()):
            raise ConfigError(f"product: {twice[0]} is set by two of its parts")
        result |= override
    return result
