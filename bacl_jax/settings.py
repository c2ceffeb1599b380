"""Strict reading of frozen dataclasses of settings from a nested mapping: types, ranges, unknown keys.

Knows no setting by name. A field's type says what it may hold (`Positive`, `Share`, a Literal, `X | None`, tuples of these);
`changeable(default)` marks a field that a resumed run may change.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

Rule = tuple[bool, str, str]  # between fields: (whether it holds, the field to blame, what it must be)


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type, out of range or at odds with another.

    The message is one line that names the field as on the command line, the value found, the allowed values and what to do.
    """


class Problems(ConfigError):
    """Several things that are wrong, each with a line of its own."""

    def __init__(self, found: Iterable[Exception]):
        self.lines = [str(one) for one in found]
        super().__init__("; ".join(self.lines))


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless marked open."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else f"{'>' if self.open_low else '>='} {self.low}"
        high = "" if self.high == math.inf else f"{'<' if self.open_high else '<='} {self.high}"
        return " and ".join(part for part in (low, high) if part)


class RegularExpression:
    """Texts that `re` can compile."""

    def __contains__(self, value: str) -> bool:
        try:
            re.compile(value)
        except re.error:
            return False
        return True

    def __str__(self) -> str:
        return "that is a regular expression"


Positive = Annotated[int, Range(1)]
NonNegative = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, open_low=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Pattern = Annotated[str, RegularExpression()]
Decay = Annotated[float, Range(0, 1, open_high=True)]


def changeable(default: Any) -> Any:
    """A field that may differ between the run that wrote a workdir and the run that resumes it."""
    return dataclasses.field(default=default, metadata={"changeable": True})


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(prefix + dotted name, value) of every field that is no group; groups in a tuple are named by their place, as in sources[0].path."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        elif isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            for number, group in enumerate(value):
                yield from leaves(group, f"{prefix}{field.name}[{number}].")
        else:
            yield prefix + field.name, value


def read(cls: Any, mapping: Any, name: str) -> Any:
    """An instance of the dataclass `cls` from `mapping`; a missing key keeps its default. `name` leads the fields' names in errors."""
    if not isinstance(mapping, Mapping):
        how = f"as in {name[: name.index('[')]}=({{...}},)" if "[" in name else f"set its fields one by one, e.g. {_example(cls, name)}"
        raise ConfigError(f"{name} = {mapping!r}: must be a group of fields; {how}")
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in mapping:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = (
                f"did you mean {'' if '[' in name else '--'}{name}.{near[0]}?" if near else f"the fields of {name} are {', '.join(hints)}"
            )
            raise ConfigError(f"{name}.{repr(str(key))[1:-1]} is unknown: {hint}")  # the message stays one line
    return cls(**{key: _read_value(hints[key], value, f"{name}.{key}") for key, value in mapping.items()})


def how_to_set(name: str) -> str:
    """What to do about a field, for the end of a message. A group in a tuple has no flag of its own."""
    tuple_name, bracket, _ = name.partition("[")
    return f"set it in --{tuple_name}=..." if bracket else f"set it with --{name}=..."


def _example(cls: Any, name: str) -> str:
    path, value = next(leaves(cls(), ""))
    return f"--{name}.{path}={value}"


def _read_value(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type `hint`, or ConfigError."""
    if dataclasses.is_dataclass(hint):
        return read(hint, value, name)
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(group := typing.get_args(hint)[0]):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} = {value!r}: must be {_describe(hint)}; {how_to_set(name)}")
        return tuple(read(group, entry, f"{name}[{number}]") for number, entry in enumerate(value))
    try:
        return _convert(hint, value)
    except (TypeError, OverflowError):
        raise ConfigError(f"{name} = {value!r}: must be {_describe(hint)}; {how_to_set(name)}") from None


def _convert(hint: Any, value: Any) -> Any:
    """`value` as `hint`, TypeError where it is none: a bool is no number, an int is a float, a list is a tuple."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        converted = _convert(args[0], value)
        if converted not in args[1]:
            raise TypeError
        return converted
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(next(arg for arg in args if arg is not type(None)), value)
    if origin is Literal:
        if not isinstance(value, str) or value not in args:
            raise TypeError
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return tuple(_convert(args[0], item) for item in value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint is not float and type(value) is hint:
        return value
    raise TypeError


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return f"a group of {', '.join(field.name for field in dataclasses.fields(hint))}"
    if origin is Annotated:
        return f"{_describe(args[0])} {args[1]}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join("None" if arg is type(None) else _describe(arg) for arg in args)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        return f"a tuple, each entry {_describe(args[0])}"
    return {int: "an integer", float: "a finite number", bool: "True or False", str: "a text"}[hint]


def describe_field(cls: Any, name: str) -> str:
    """The values that the field of dotted name `name` may take, in words. KeyError if there is no such field."""
    group, leaf = group_of(cls, name)
    return _describe(typing.get_type_hints(group, include_extras=True)[leaf])


def group_of(cls: Any, name: str) -> tuple[Any, str]:
    """(dataclass that has the field, its name there) for a dotted name as `leaves` gives it. KeyError if there is no such group."""
    *groups, leaf = name.split(".")
    for group in groups:
        bare = group.partition("[")[0]
        hint = typing.get_type_hints(cls)[bare]
        cls = hint if bare == group else typing.get_args(hint)[0]
    return cls, leaf
