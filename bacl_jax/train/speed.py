"""How fast a run is at present: pairs a second, the share of the chips' peak that it uses, waits for data, memory."""

import collections
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from bacl_jax.train import cost, flops
from bacl_jax.train.goodput import Goodput

WINDOW = 30.0  # seconds of steps that a rate is about
MEMORY_SECONDS = 10.0  # between two looks at memory
GIB = 2**30


class Speed:
    """Rates over the newest steps, by the time of steps and their data alone: evaluations, saves and compiling are not in them."""

    def __init__(self, account: Goodput, batch_size: int, devices: Sequence[Any]):
        self._account, self._batch_size, self._devices = account, batch_size, devices
        self._peak = cost.peak_flops(devices[0].device_kind)
        self._flops: float | None = None
        self._memory = self._look_again = 0.0
        self.latest: dict[str, float] = {}  # what `update` gave
        self._window: collections.deque[tuple[int, float, float]] = collections.deque()  # step, seconds of steps, of waits up to it

    def count(self, step: Any, *arguments: Any) -> None:
        """Counts the FLOPs of a step, where the chips' peak is known: a trace of the step, which its compilation needs as well."""
        if self._peak is not None:
            try:
                self._flops = flops.count(step, *arguments)
            except ValueError:  # a loop whose turns are not in the program: then there is no MFU, and the run goes on
                self._flops = None

    def update(self, step: int) -> dict[str, float]:
        """After `step`, of the newest steps.

        pairs_per_second; mfu, where the peak of the devices for bfloat16 is known: the step's FLOPs, what is made again included, over
        what all devices could do meanwhile, in percent; data_wait: share of the time, in percent; memory_gib: the most that was in use on
        a device of this process, or by the process where the devices do not tell.
        """
        spent = self._account.seconds()
        self._window.append((step, spent["steps"], spent["data"]))
        while len(self._window) > 2 and self._busy(1) > WINDOW:
            self._window.popleft()
        steps, busy = step - self._window[0][0], self._busy(0)
        if time.monotonic() >= self._look_again:  # a device at work may keep who asks waiting
            self._look_again, self._memory = time.monotonic() + MEMORY_SECONDS, memory(self._devices) / GIB
        found = {"memory_gib": self._memory}
        if steps > 0 and busy > 0:
            found["pairs_per_second"] = steps * self._batch_size / busy
            found["data_wait"] = 100 * (spent["data"] - self._window[0][2]) / busy
            if self._flops is not None and self._peak is not None:
                found["mfu"] = 100 * steps * self._flops / (busy * self._peak * len(self._devices))
        self.latest = found
        return found

    def _busy(self, first: int) -> float:
        """Seconds between an entry of the window and the last."""
        return sum(self._window[-1][1:]) - sum(self._window[first][1:])


def memory(devices: Sequence[Any]) -> float:
    """Bytes: the most that was in use on one of the devices of this process, or by the process where they do not tell."""
    own = [stats for device in devices if device.process_index == jax.process_index() and (stats := device.memory_stats())]
    if own:
        return max(stats.get("peak_bytes_in_use", stats["bytes_in_use"]) for stats in own)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
