"""Remote files that fail for a while or for good."""

import random
import time

import fsspec
import loopback
import pytest

from bacl_jax.data import storage
from bacl_jax.errors import DataError

CONTENT = random.Random(0).randbytes(5000)


@pytest.fixture
def server(monkeypatch):
    with loopback.serving(monkeypatch) as running:
        running.files = {"/a": CONTENT}
        yield running


@pytest.mark.parametrize("fault", [408, 429, 500, 502, 503, 504, "drop", "cut", "hang", "trickle", "slow"])
def test_what_passes_is_waited_out(server, monkeypatch, fault):
    monkeypatch.setattr(storage, "TIMEOUT", 0.1)
    monkeypatch.setattr(storage, "SLOWEST", 10_000)
    server.faults = [fault] * (storage.TRIES - 1)
    assert storage.Reader().read(f"{server.url}/a", 10, 4000) == CONTENT[10:4000]
    assert len(server.requests) == (1 if fault == "slow" else storage.TRIES)


@pytest.mark.parametrize("fault", [500, "drop", "cut", "hang"])
def test_what_stays_is_an_error_that_names_the_file(server, monkeypatch, fault):
    monkeypatch.setattr(storage, "TIMEOUT", 0.05)
    server.faults = [fault] * storage.TRIES
    with pytest.raises(DataError, match=r"/a: cannot read it, 6 tries failed \(.*\); check the network and the server") as caught:
        storage.Reader().read(f"{server.url}/a", 0, 10)
    assert (caught.value.kind, caught.value.shard) == ("remote", f"{server.url}/a")


@pytest.mark.parametrize(("fault", "kind"), [(400, "remote"), (405, "remote"), (401, "missing"), (403, "missing"), (410, "missing")])
def test_what_will_not_pass_is_not_asked_again(server, fault, kind):
    server.faults = [fault]
    with pytest.raises(DataError, match="/a: ") as caught:
        storage.size(f"{server.url}/a")
    assert (caught.value.kind, len(server.requests)) == (kind, 1)


def test_a_server_without_range_requests(server):
    server.ranges = False
    with pytest.raises(DataError, match=r"cannot measure it, 1 tries failed .* does not answer range requests"):
        storage.size(f"{server.url}/a")


def test_waiting_grows_by_chance_and_obeys_the_server(server, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(storage, "BACKOFF", 1.0)
    server.faults = [503] * 5
    storage.size(f"{server.url}/a")
    assert all(0.5 * 2**i <= wait <= 1.5 * 2**i for i, wait in enumerate(waits))
    assert len({wait / 2**i for i, wait in enumerate(waits)}) == 5
    for asked, expected in (("30", 30), ("99999", storage.LONGEST_WAIT), ("Wed, 21 Oct 2026 07:28:00 GMT", None)):
        waits.clear()
        server.retry_after, server.faults = asked, [429]
        storage.size(f"{server.url}/a")
        assert waits == [expected] if expected else 0.5 <= waits[0] <= 1.5


@pytest.mark.parametrize("scheme", ["http", "memory"])
def test_a_remote_file_reads_like_a_local_one(server, tmp_path, scheme):
    fsspec.filesystem("memory").pipe("/storage/a", CONTENT)
    (tmp_path / "a").write_bytes(CONTENT)
    draw = random.Random(1)
    location = f"{server.url}/a" if scheme == "http" else "memory://storage/a"
    assert storage.size(location) == len(CONTENT)
    assert storage.Reader().read(location, 4990, 6000) == CONTENT[4990:]
    with storage.RemoteFile(location) as remote, open(tmp_path / "a", "rb") as local:
        for _ in range(30):
            place = draw.choice([(draw.randrange(6000), 0), (-draw.randrange(5000), 2), (0, 1)])
            assert remote.seek(*place) == local.seek(*place)
            length = draw.choice([-1, 0, 1, 700])
            assert remote.read(length) == local.read(length)
            assert remote.tell() == local.tell()


def test_pages_are_requested_once_and_the_oldest_leave(server, monkeypatch):
    monkeypatch.setattr(storage, "PAGE_BYTES", 1000)
    reader, at = storage.Reader(keep_bytes=3000), f"{server.url}/a"
    for start, end in [(0, 10), (990, 1010), (1999, 2000), (0, 3000), (4990, 5000), (4000, 4001)]:
        assert reader.read(at, start, end) == CONTENT[start:end]
    assert len(server.requests) == 4  # of five pages, 3 is in none
    assert reader.read(at, 2500, 2600) == CONTENT[2500:2600]
    assert len(server.requests) == 4
    assert reader.read(at, 0, 1) == CONTENT[:1]  # had left
    assert len(server.requests) == 5
    assert storage.Reader(keep_bytes=1).read(at, 900, 4100) == CONTENT[900:4100]  # more than it keeps
    server.faults = [500, "cut"]
    assert reader.read(at, 3500, 3600) == CONTENT[3500:3600]


def test_a_file_that_is_not_there(server):
    for location in (f"{server.url}/b", "memory://storage/none", "/nothing/there"):
        with pytest.raises(DataError, match=r"correct the path|restore it") as caught:
            storage.size(location)
        assert caught.value.kind == "missing"
    assert len(server.requests) == 1
