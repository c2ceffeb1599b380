"""One run in several processes: the flags by which a process finds the others, and how it joins and leaves them.

JAX is imported where it is used: what the flags get wrong, and an address that cannot be had, is said before that.
"""

import atexit
import collections
import contextlib
import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from bacl_jax.agreement import differences
from bacl_jax.config import Config, ConfigError, flatten
from launch import command
from launch.rendezvous import Place, meet
from launch.supervise import end_with_launcher

HEARTBEAT_SECONDS = 20  # without a sign of life, after which a process counts as dead and JAX ends the others
LEAVE_SECONDS = 25  # that a process which ends with an error waits for the others: until it is known who has died

COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port at which process 0 is reached; the port is free there.")
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.", lower_bound=0)
DEVICES = flags.DEFINE_integer("devices_per_process", None, "Devices that the CPU plays in a process.", lower_bound=1)
WAIT = flags.DEFINE_float("wait_seconds", 120.0, "How long a process waits at the start for the others.", lower_bound=1.0)


@contextlib.contextmanager
def joined(config: Config, workdir: str) -> Iterator[None]:
    """Joins the processes that the flags name; without flags the run is this process. Comes before any use of JAX's devices.

    The processes must agree on config, code, versions and number of devices, else ConfigError in each. Standard output of all but process 0
    is dropped. A process that dies later ends the others within 60 s: they lose its connection, or JAX misses its heartbeat.
    """
    end_with_launcher()
    place = _place()
    if place is not None:
        meet(place, _facts(config, workdir))
    import jax

    from bacl_jax.mesh import compile_anew, spare_threads

    if DEVICES.value is not None:
        jax.config.update("jax_num_cpu_devices", DEVICES.value)
    if place is not None or DEVICES.value is not None:
        spare_threads(DEVICES.value or 1)
    if place is None:
        if DEVICES.value is not None:
            compile_anew()
        yield
        return
    jax.distributed.initialize(
        place.address,
        place.processes,
        place.process,
        cluster_detection_method="deactivate",
        coordinator_bind_address=f"{place.bound or '[::]'}:{place.coordinator[1]}",
        initialization_timeout=int(place.wait_seconds),
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=LEAVE_SECONDS,
    )
    _check_devices(place.processes)
    compile_anew()
    with contextlib.ExitStack() as stack:
        if place.process != 0:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        try:
            yield
        except (*command.ONE_LINE, *command.FAILED, KeyboardInterrupt) as error:
            atexit.register(
                _exit, 2 if isinstance(error, command.ONE_LINE) else 1
            )  # runs before JAX's own, which would wait for the others
            raise


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave() -> bool:
    """Parts with the other processes when all have come here, and says whether this is the first, which goes on alone.

    No collective may come after it. A run of one process is the first.
    """
    import jax

    from bacl_jax.train.processes import wait_for_all

    first = jax.process_index() == 0
    wait_for_all("the end of training")
    jax.distributed.shutdown()
    return first


def is_first() -> bool:
    """Whether the flags make this the first process, or the only one."""
    place = _place()
    return place is None or place.process == 0


def devices_asked() -> int | None:
    """Devices of all processes, where the flags tell."""
    place = _place()
    return None if DEVICES.value is None else DEVICES.value * (1 if place is None else place.processes)


def _place() -> Place | None:
    given: dict[str, Any] = {"coordinator": COORDINATOR.value, "processes": PROCESSES.value, "process": PROCESS.value}
    if all(value is None for value in given.values()):
        return None
    if missing := [f"--{name}" for name, value in given.items() if value is None]:
        raise ConfigError(f"{', '.join(missing)} must be given too: --coordinator=host:port --processes=4 --process=0")
    coordinator, processes, process = given.values()
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator={coordinator}: must be host:port, such as 10.0.0.1:1234")
    if process >= processes:
        raise ConfigError(f"--process={process} must be below --processes={processes}: the first one is 0")
    return Place((host, int(port)), processes, process, WAIT.value)


def _facts(config: Config, workdir: str) -> dict[str, Any]:
    """What must be equal in all processes."""
    fields = {"--workdir": workdir} | {f"config.{name}": value for name, value in flatten(config).items()}
    python, jax = ".".join(map(str, sys.version_info[:2])), importlib.metadata.version("jax")
    return fields | {"the code": _code_version(), "jax": jax, "python": python}


def _code_version() -> str:
    """Digest of the source files of the packages."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for package in ("bacl_jax", "launch") for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _check_devices(processes: int) -> None:
    """ConfigError, the same in all processes, where they have not as many devices of one kind each."""
    import jax

    found = {process: collections.Counter() for process in range(processes)}
    for device in jax.devices():
        found[device.process_index][device.device_kind] += 1
    said = {process: {"devices": dict(sorted(kinds.items()))} for process, kinds in found.items()}
    if differs := differences(said):
        raise ConfigError(f"the processes do not agree: {differs}; set --devices_per_process or the devices that each one sees")
