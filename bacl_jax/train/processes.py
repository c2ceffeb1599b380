"""What the processes of a run do together. A run of one process does not notice."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from bacl_jax.agreement import differences
from bacl_jax.config import ConfigError
from bacl_jax.errors import LateError

ALONE_SECONDS = 24 * 3600  # for what one process does alone, such as an evaluation; that a process has died is noticed long before
TOGETHER_SECONDS = 600  # between the first and the last process in what all do at the same time, such as a compile
FACTS = "bacl_jax/facts/"  # in JAX's key-value store: what is compared, number of a process -> what it has found
PLACES = "bacl_jax/places/"  # in JAX's key-value store: number of a process -> where it last waited


def wait_for_all(what: str, seconds: float = ALONE_SECONDS) -> None:
    """Returns when all processes have come here. `what`: the place, once a run. LateError after `seconds` names those that have not."""
    processes = jax.process_count()
    if processes == 1:
        return
    places = ocp.multihost.get_jax_distributed_client()
    places.key_value_set(f"{PLACES}{jax.process_index()}", what, allow_overwrite=True)
    try:
        ocp.multihost.get_barrier_sync_fn()(key=what, timeout_ms=int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        last = {int(name.removeprefix(PLACES)): place for name, place in places.key_value_dir_get(PLACES)}
        late = [f"process {one} (last seen at: {last.get(one, 'the start')})" for one in range(processes) if last.get(one) != what]
        raise LateError(
            f"process {jax.process_index()} waited {seconds:g} s at: {what}; of {processes} processes there did not come "
            f"{', '.join(late)}: look what it does there, then start the run again"
        ) from None


def agree(what: str, facts: Mapping[str, Any]) -> None:
    """Waits for all processes and compares what they have found; ConfigError in each names the facts that differ, and in which process.

    what: as for `wait_for_all`. facts: name -> what JSON can hold.
    """
    if jax.process_count() == 1:
        return
    place, store = f"{FACTS}{what}/", ocp.multihost.get_jax_distributed_client()
    store.key_value_set(f"{place}{jax.process_index()}", json.dumps(dict(facts)))
    wait_for_all(what, TOGETHER_SECONDS)
    said = {int(name.removeprefix(place)): json.loads(value) for name, value in store.key_value_dir_get(place)}
    if found := differences(said):
        raise ConfigError(f"the processes have not found the same: {found}; look at the files that each of them sees, and start again")


def compile_together(what: str, jitted: Any, *arguments: Any) -> None:
    """Compiles a jitted function in every process before any of them calls it. The call finds it compiled.

    Who is done first would wait for the others inside the first collective, and gloo gives up on a new group of devices after 30 s. Here
    it waits TOGETHER_SECONDS, then LateError.
    """
    jitted.lower(*arguments).compile()
    wait_for_all(f"{what} is compiled", TOGETHER_SECONDS)


def on_process_0(what: str, compute: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    """What process 0 computes, in every process. `compute` uses no array and no collective of all of them."""
    if jax.process_count() == 1:
        return compute()
    results = json.dumps(dict(compute())).encode() if jax.process_index() == 0 else b""
    wait_for_all(what)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(results))))
    text = np.frombuffer(results.ljust(size, b" "), np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
