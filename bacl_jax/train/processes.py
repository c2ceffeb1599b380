"""What the processes of a run do together. A run of one process does not notice."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

WAIT_HOURS = 24  # for what one process does alone, such as an evaluation; that a process has died is noticed long before


def wait_for_all(what: str) -> None:
    """Returns when all processes have come here. `what` names the place, once a run."""
    ocp.multihost.get_barrier_sync_fn()(key=what, timeout_ms=WAIT_HOURS * 3_600_000)


def compile_together(what: str, jitted: Any, *arguments: Any) -> None:
    """Compiles a jitted function in every process before any of them calls it. The call finds it compiled.

    Who is done first would wait for the others inside the first collective, and gloo gives up on a new group of devices after 30 s.
    """
    jitted.lower(*arguments).compile()
    if jax.process_count() > 1:
        wait_for_all(what)


def on_process_0(what: str, compute: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    """What process 0 computes, in every process. `compute` uses no array and no collective of all of them."""
    if jax.process_count() == 1:
        return compute()
    results = json.dumps(dict(compute())).encode() if jax.process_index() == 0 else b""
    wait_for_all(what)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(results))))
    text = np.frombuffer(results.ljust(size, b" "), np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
