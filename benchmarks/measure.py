"""What a benchmark's process does: prepare one case, then run it when asked and say how long it took. Standard library alone.

Both sides of a comparison are such processes, each in its own environment; `benchmarks/run.py` gives them turns. A line on standard input
is a number of calls, the answer a line of JSON; the end of the input asks for the last line, the memory.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

MIB = 2**20
Prepare = Callable[[], tuple[Callable[[], Any], dict[str, float]]]  # -> (one call, blocking; figures known beforehand)


def resident_mib(peak: bool = False) -> float:
    """Memory of this process, as it is or at its largest since the start or since `forget_peak`."""
    name = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))


def forget_peak() -> None:
    """From here on the largest memory is counted anew (man 5 proc, clear_refs)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def family() -> list[int]:
    """This process and all that came from it and still run."""
    found, waiting = [], [os.getpid()]
    while waiting:
        found.append(waiting.pop())
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            for thread in os.scandir(f"/proc/{found[-1]}/task"):
                with open(f"{thread.path}/children") as children:
                    waiting.extend(map(int, children.read().split()))
    return found


def family_mib() -> float:
    """Memory of this process and its workers; what they share counts once."""
    kib = 0
    for process in family():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{process}/smaps_rollup") as memory:
            kib += next(int(line.split()[1]) for line in memory if line.startswith("Pss:"))
    return kib / 1024


def own_seconds() -> float:
    """Processor time of this process and its workers."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    ticks = 0
    for process in family()[1:]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{process}/stat") as stat:
            ticks += sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))
    return sum(each.ru_utime + each.ru_stime for each in used) + ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Processor time of the whole machine, all cores."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def timed(call: Callable[[], Any], calls: int) -> dict[str, Any]:
    """Milliseconds of each call, wall-clock and processor, and how many cores others used meanwhile."""
    wall, cpu = [], []
    start, own, busy = time.perf_counter(), own_seconds(), busy_seconds()
    for _ in range(calls):
        before, used = time.perf_counter(), own_seconds()
        call()
        wall.append(1e3 * (time.perf_counter() - before))
        cpu.append(1e3 * (own_seconds() - used))
    others = (busy_seconds() - busy - (own_seconds() - own)) / (time.perf_counter() - start)
    return {"wall_ms": wall, "cpu_ms": cpu, "others_cores": max(others, 0.0)}


def drain(source: Iterator[Any], count: int) -> None:
    """Takes so many batches and keeps none."""
    for _ in range(count):
        next(source)


def serve(prepare: Prepare) -> None:
    """Answers until the input ends; called when all modules are imported.

    Memory: over_import_mib, the peak less what the process has now; over_inputs_mib, the peak of the calls, the first among them, less what
    it has before them, when inputs and compiled program are there; family_mib, at the end, with the processes that it started.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    say = lambda **fields: print(json.dumps(fields), file=answers, flush=True)  # noqa: E731
    imported = resident_mib()
    call, figures = prepare()
    highest, ready = resident_mib(peak=True), resident_mib()
    forget_peak()
    for _ in range(2):  # fills what is allocated once
        call()
    say(**figures)
    for line in sys.stdin:
        say(**timed(call, int(line)))
    last, whole = resident_mib(peak=True), family_mib()
    say(family_mib=whole, over_import_mib=max(highest, last) - imported, over_inputs_mib=last - ready)
