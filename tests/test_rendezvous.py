"""Processes meet before they start JAX; here they are threads."""

import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bacl_jax.config import ConfigError
from bacl_jax.train.processes import differences
from launch.rendezvous import Place, meet


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def outcome(place, facts):
    try:
        meet(place, facts)
    except ConfigError as error:
        return str(error)
    return None


def together(port, said, processes, wait=20.0):
    """What each process that comes hears; `said`: (number, facts)."""
    with ThreadPoolExecutor(len(said)) as pool:
        running = [pool.submit(outcome, Place(("127.0.0.1", port), processes, number, wait), facts) for number, facts in said]
        return [one.result() for one in running]


def test_equal_facts(port):
    facts = {"config.seed": 0, "tasks": ("a", "b"), "nothing": None}
    assert together(port, [(number, facts) for number in (2, 0, 3, 1)], 4) == [None] * 4


def test_all_hear_what_differs(port):
    said = [(number, {"lr": 0.5 if number == 2 else 0.1, "seed": 0}) for number in range(4)]
    assert together(port, said, 4) == ["the processes do not agree: lr is 0.1 in process 0, 1, 3 and 0.5 in process 2"] * 4


def test_another_number_of_processes(port):
    places = [Place(("127.0.0.1", port), *one, 20.0) for one in ((2, 0), (3, 2))]
    with ThreadPoolExecutor(2) as pool:
        heard = list(pool.map(lambda place: outcome(place, {}), places))
    assert heard == ["the processes do not agree: processes is 2 in process 0 and 3 in process 2"] * 2


def test_two_with_one_number(port):
    assert together(port, [(0, {}), (1, {}), (1, {})], 3) == ["the processes do not agree: two of them have --process=1"] * 3


def test_who_is_missing(port):
    heard = together(port, [(0, {}), (3, {})], 4, wait=1.5)
    for number, message in zip((0, 3), heard, strict=True):
        assert re.match(rf"process {number} waited 1.5 s for process 1, 2 of 4 at 127.0.0.1:\d+: start all of them", message)


def test_process_0_is_missing(port):
    assert together(port, [(1, {})], 2, wait=1.0)[0].startswith("process 1 waited 1 s for process 0 of 2")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "two..dots"])
@pytest.mark.parametrize("process", [0, 1])
def test_a_name_without_an_address(host, process, port):
    message = outcome(Place((host, port), 2, process, 1.0), {})
    assert message.startswith(f"--coordinator={host}:{port}: process {process} cannot resolve the name '{host}': ")


def test_a_taken_port(port):
    with socket.create_server(("127.0.0.1", port)):
        assert "process 0 cannot listen there" in together(port, [(0, {})], 2)[0]


def test_who_is_no_process_is_not_listened_to(port):
    def knock():
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                    return connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            except OSError:
                threading.Event().wait(0.02)

    stranger = threading.Thread(target=knock)
    stranger.start()
    assert together(port, [(0, {}), (1, {})], 2) == [None, None]
    stranger.join()


def test_a_fact_that_one_lacks():
    assert differences({0: {"a": 1}, 1: {}}) == "a is 1 in process 0 and null in process 1"
