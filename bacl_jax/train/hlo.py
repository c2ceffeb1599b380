"""What a compiled program moves, read from its text (`compiled.as_text()`): bytes to and from memory, and collectives.

XLA's own `cost_analysis` counts the body of a loop once. Here it counts as often as it runs: by the `known_trip_count` that XLA notes, else
by the constant that the loop's condition compares with (JAX's scans count from 0 in ones), else once. All numbers are those of one device.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id", "iota", "opt-barrier"}
_LINE = re.compile(r"\s*(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLS = re.compile(r"\b(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%?[\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind and size of collective: bytes of what one passes round (the larger of operands and results), times it runs in a step."""

    kind: str
    bytes: int
    count: int


class Traffic(NamedTuple):
    """Bytes that a program moves to and from main memory in a step."""

    beside: int  # by matrix products and convolutions, and by fetches ahead of use: while the matrix unit works
    alone: int  # by everything else, which runs when its turn comes


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    called: dict[str, tuple[str, ...]]  # attribute -> computations
    rest: str
    root: bool


def sizes(shape: str) -> Iterator[tuple[int, bool]]:
    """(bytes, whether they lie in the chip's main memory) of each array of a printed shape."""
    for kind, dims, layout in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
        count = math.prod(int(n) for n in dims.split(",") if n)
        yield (count * bits + 7) // 8, "S(1)" not in layout


def total(shape: str) -> int:
    """Bytes of a printed shape, wherever they lie."""
    return sum(size for size, _ in sizes(shape))


def in_memory(shape: str) -> int:
    """Bytes of a printed shape in the chip's main memory: without what the compiler keeps in the scratchpad of a TPU."""
    return sum(size for size, main in sizes(shape) if main)


class Program:
    """The computations of a compiled program."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, current = "", None
        for line in text.splitlines():
            if current is None:
                if head := _HEAD.match(line):
                    current = self.computations[head[2]] = {}
                    self.entry = head[2] if head[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif found := _LINE.match(line):
                one = _instruction(found)
                current[one.name] = one
        if not self.entry:
            raise ValueError("no ENTRY computation: not the text of a compiled program")

    def collectives(self) -> list[Collective]:
        """All that run, those of the largest traffic first."""
        found: collections.Counter[tuple[str, int]] = collections.Counter()
        spread: dict[tuple[str, int, str], int] = {}
        for computation, one, times in self._running(self.entry, 1, fused=True):
            kind = one.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            given, made = self._operands(computation, one, total), total(one.shape)
            size = max(given, made - given if one.opcode.endswith("-start") else made)
            channel = re.search(r"channel_id=(\d+)", one.rest)
            if computation in self._fused and channel and kind != "collective-permute":
                # runs beside other work and is written in the fusion of each piece of it, or in a loop's body if it runs beside the loop
                key = "reduce-scatter" if computation.startswith("all-reduce-scatter") else kind, size, channel[1]
                spread[key] = min(times, spread.get(key, times))
            else:
                found[kind, size] += times
        for (kind, size, _), times in spread.items():
            found[kind, size] += times
        return sorted((Collective(*key, count) for key, count in found.items()), key=lambda one: (-one.bytes * one.count, one.kind))

    @functools.cached_property
    def _fused(self) -> set[str]:
        """Computations that are the inside of a fusion."""
        every = (one for inside in self.computations.values() for one in inside.values() if one.opcode == "fusion")
        return {name for one in every for name in one.called["calls"]}

    def traffic(self) -> Traffic:
        """Bytes read from and written to main memory: of each fusion and each instruction outside of one its operands and results."""
        beside = alone = 0
        for computation, one, times in self._running(self.entry, 1):
            moved = times * self._moved(computation, one)
            if one.opcode.endswith("-start") or self._multiplies(one):
                beside += moved
            else:
                alone += moved
        return Traffic(beside, alone)

    def _multiplies(self, one: Instruction) -> bool:
        """Whether an instruction is a matrix product or a convolution, or a fusion around one."""
        if one.opcode == "fusion":
            return any(self._multiplies(inner) for inner in self.computations[one.called["calls"][0]].values())
        return one.opcode in ("dot", "convolution") or (
            one.opcode == "custom-call" and re.search(r"matmul|gemm|dot|conv", one.rest) is not None
        )

    def _running(self, computation: str, times: int, fused: bool = False) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, times it runs); of a conditional every branch. fused: with those inside fusions."""
        for one in self.computations[computation].values():
            yield computation, one, times
            if one.opcode == "while":
                (body,) = one.called["body"]
                yield from self._running(body, times * self._turns(one), fused)
            elif one.opcode in ("call", "conditional", "async-start") or (fused and one.opcode == "fusion"):
                for names in one.called.values():
                    for name in names:
                        yield from self._running(name, times, fused)

    def _turns(self, loop: Instruction) -> int:
        if known := re.search(r'known_trip_count"?[:=]\s*\{"?n"?:\s*"?(\d+)', loop.rest):
            return int(known[1])
        (condition,) = loop.called["condition"]
        bounds = [
            one.rest for one in self.computations[condition].values() if one.opcode == "constant" and re.match(r"[su]\d+\[\]", one.shape)
        ]
        return int(bounds[0].split(")")[0]) if len(bounds) == 1 else 1

    def _operands(self, computation: str, one: Instruction, measure: Callable[[str], int]) -> int:
        return sum(measure(self.computations[computation][name].shape) for name in one.operands if name in self.computations[computation])

    def _moved(self, computation: str, one: Instruction) -> int:
        names, inside = one.operands, self.computations[computation]
        shape = lambda i: inside[names[i]].shape if i < len(names) and names[i] in inside else ""  # noqa: E731
        if one.opcode in FREE or one.opcode.endswith("-done") or one.opcode in ("while", "call", "conditional", "async-start"):
            return 0
        if one.opcode == "fusion":
            (called,) = one.called["calls"]
            read = sum(self._read(called, i, shape(i)) for i in range(len(names)))
            return read + self._written(called, one.shape)
        if one.opcode in ("copy-start", "slice-start", "dynamic-slice-start"):
            ends = list(sizes(one.shape))[:2]  # (copy, what is copied, ...) or ((what is sliced), slice, ...)
            return ends[one.opcode != "copy-start"][0] * sum(main for _, main in ends)
        if one.opcode in ("slice", "dynamic-slice", "gather"):
            return 2 * in_memory(one.shape)
        if one.opcode == "dynamic-update-slice":
            return 2 * in_memory(shape(1))
        return self._operands(computation, one, in_memory) + in_memory(one.shape)

    @functools.cached_property
    def _users(self) -> dict[tuple[str, str], list[tuple[Instruction, int]]]:
        """(computation, name) -> the instructions that take it, and as which operand."""
        users: dict[tuple[str, str], list[tuple[Instruction, int]]] = collections.defaultdict(list)
        for computation, inside in self.computations.items():
            for one in inside.values():
                for place, name in enumerate(one.operands):
                    users[computation, name].append((one, place))
        return users

    def _read(self, fusion: str, number: int, shape: str) -> int:
        """Bytes that a fusion reads of its operand: of one that is only sliced, the slices."""
        if not (whole := in_memory(shape)):
            return 0
        parameter = next(
            (one for one in self.computations[fusion].values() if one.opcode == "parameter" and one.rest.startswith(f"{number})")), None
        )
        return whole if parameter is None else min(whole, self._used(fusion, parameter.name, whole))

    def _used(self, computation: str, name: str, whole: int) -> int:
        used = 0
        for user, place in self._users[computation, name]:
            if user.opcode == "bitcast":
                used += self._used(computation, user.name, whole)
            elif user.opcode in ("slice", "dynamic-slice", "gather") and place == 0:
                used += total(user.shape)
            elif user.opcode == "fusion":
                used += self._read(user.called["calls"][0], place, self.computations[computation][name].shape)
            elif not (user.opcode in ("tuple", *KINDS) or (user.opcode == "dynamic-update-slice" and place == 0)):
                return whole
        return used

    def _written(self, fusion: str, shape: str) -> int:
        """Bytes that a fusion writes: of what it updates in place the slice, of what only passes through it nothing."""
        inside = self.computations[fusion]
        (last,) = (one for one in inside.values() if one.root)
        written = 0
        for one in [inside[name] for name in last.operands] if last.opcode == "tuple" else [last]:
            made = one
            while made.opcode == "bitcast" and made.operands[0] in inside:
                made = inside[made.operands[0]]
            if made.opcode == "dynamic-update-slice":
                written += min(in_memory(one.shape), total(inside[made.operands[1]].shape))
            elif made.opcode not in ("parameter", *KINDS):
                written += in_memory(one.shape)
        return min(written, in_memory(shape))


def _instruction(found: re.Match) -> Instruction:
    rest, depth, end = found[5], 1, 0
    for end, letter in enumerate(rest):  # noqa: B007
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            break
    called = {name: tuple(re.findall(r"[\w.-]+", names)) for name, names in _CALLS.findall(rest[end:])}
    operands = tuple(re.findall(r"%([\w.-]+)", rest[:end]))
    return Instruction(found[2], found[3], found[4], operands, called, rest, bool(found[1]))
