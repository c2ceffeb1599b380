"""The processes of a run meet before they start JAX, and agree on what they run or say in one line why not.

Process 0 listens at the coordinator's address; each other process tells it who it is and what it runs, as one line of JSON, and hears the
verdict. JAX's own start-up names nobody when a process is missing, and a collective between processes that differ hangs or mixes numbers.
"""

import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from bacl_jax.agreement import differences
from bacl_jax.config import ConfigError

RETRY_SECONDS = 0.2  # between two tries to reach process 0, which may not listen yet
LINE_SECONDS = 10.0  # for a connection to say its line; what says none is no process of ours


@dataclasses.dataclass(frozen=True)
class Place:
    """coordinator: host and port where process 0 is reached; wait_seconds: how long a process waits for the others."""

    coordinator: tuple[str, int]
    processes: int
    process: int
    wait_seconds: float

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.coordinator)

    @property
    def bound(self) -> str:
        """Where process 0 listens: its loopback alone where that is the coordinator, else everywhere: its name may not be its address."""
        return self.coordinator[0] if self.coordinator[0] in ("127.0.0.1", "localhost") else ""


def meet(place: Place, facts: Mapping[str, Any]) -> None:
    """Returns when all processes have come with equal facts (name -> JSON value).

    ConfigError, the same in every process that came, names who is missing after wait_seconds, or what differs and between whom; or
    that the coordinator's name has had no address here for so long.
    """
    _check_host(place)
    own = json.loads(json.dumps({"processes": place.processes, **facts}))  # tuples become lists, as in what the others send
    verdict = _gather(place, own) if place.process == 0 else _ask(place, own)
    if verdict["missing"]:
        missing = ", ".join(map(str, verdict["missing"]))
        raise ConfigError(
            f"process {place.process} waited {place.wait_seconds:g} s for process {missing} of {place.processes} at {place.address}: "
            "start all of them, or raise --wait_seconds"
        )
    if verdict["differs"]:
        raise ConfigError(f"the processes do not agree: {verdict['differs']}")


def _check_host(place: Place) -> None:
    """Returns when the coordinator's name has an address: a cluster may tell it some time after its machines start."""
    deadline = time.monotonic() + place.wait_seconds
    while True:
        try:
            socket.getaddrinfo(*place.coordinator)
            return
        except (socket.gaierror, UnicodeError) as error:  # UnicodeError: an empty or an overlong part of a name
            if isinstance(error, socket.gaierror) and time.monotonic() + 1 < deadline:
                time.sleep(1)
                continue
            raise ConfigError(
                f"--coordinator={place.address}: process {place.process} cannot resolve the name {place.coordinator[0]!r}: {error}; "
                "it must be a host name or an address that is known here"
            ) from None


def _gather(place: Place, facts: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + place.wait_seconds
    said, problem = {0: facts}, ""
    try:
        server = socket.create_server((place.bound, place.coordinator[1]), backlog=max(128, place.processes))
    except OSError as error:
        raise ConfigError(f"--coordinator={place.address}: process 0 cannot listen there: {error.strerror}; take another port") from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        came = []
        while len(said) < place.processes and not problem and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection = stack.enter_context(server.accept()[0])
                hello = _receive(connection, min(left, LINE_SECONDS))
                process, told = int(hello["process"]), dict(hello["facts"])
            except (OSError, ValueError, KeyError, TypeError):  # nobody came in time, or it was no process of ours
                continue
            came.append(connection)
            if process in said:
                problem = f"two of them have --process={process}"
            said[process] = told
            if process >= place.processes:
                problem = differences(said) or f"--process={process} is not below --processes={place.processes}"
        missing = [] if problem else sorted(set(range(place.processes)) - set(said))
        verdict = {"missing": missing, "differs": problem or differences(said)}
        for connection in came:
            with contextlib.suppress(OSError):  # it has ended since: JAX's start-up will miss it
                connection.sendall(_line(verdict))
    return verdict


def _ask(place: Place, facts: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + place.wait_seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(place.coordinator, timeout=left)
        except OSError:
            time.sleep(RETRY_SECONDS)
            continue
        with connection:
            try:
                connection.sendall(_line({"process": place.process, "facts": facts}))
                return _receive(connection, place.wait_seconds + LINE_SECONDS)  # process 0 may have started that much later
            except (OSError, ValueError):
                raise ConfigError(f"process {place.process}: process 0 at {place.address} ended before all had come") from None
    return {"missing": [0], "differs": ""}


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _receive(connection: socket.socket, seconds: float) -> dict[str, Any]:
    connection.settimeout(seconds)
    with connection.makefile("rb") as file:
        return json.loads(file.readline())
