"""A run goes on only with the rows that it was begun with, and only where all processes have found the same."""

import json
import types

import jax
import orbax.checkpoint as ocp
import pytest

from bacl_jax.config import ConfigError
from bacl_jax.data.source import Part
from bacl_jax.train import processes
from launch import beginning


def dataset(*rows):
    return types.SimpleNamespace(parts=lambda: tuple(Part(f"part {number}", count) for number, count in enumerate(rows)))


def test_a_run_goes_on_with_the_rows_it_was_begun_with(tmp_path):
    beginning.check_rows(tmp_path, dataset(10, 20))  # begun now
    beginning.keep_rows(tmp_path, dataset(10, 20))
    beginning.check_rows(tmp_path, dataset(10, 20))
    beginning.keep_rows(tmp_path, dataset(10, 19))  # what was begun stays
    assert json.loads((tmp_path / "rows.json").read_text()) == {"training rows": [10, 20]}
    with pytest.raises(ConfigError, match=r"begun with \[10, 20\] training rows.* now there are \[10, 19\].*delete .*rows\.json"):
        beginning.check_rows(tmp_path, dataset(10, 19))
    (tmp_path / "rows.json").unlink()
    beginning.check_rows(tmp_path, dataset(10, 19))


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_damaged_file_of_rows_says_so(tmp_path, content):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(ConfigError, match=r"rows\.json: not what a run wrote; delete it"):
        beginning.check_rows(tmp_path, dataset(10))


class Store:
    """JAX's key-value store, in which process 1 has said something before."""

    def __init__(self, said):
        self.values = dict(said)

    def key_value_set(self, key, value, allow_overwrite=False):
        self.values[key] = value

    def key_value_dir_get(self, place):
        return [(key, value) for key, value in self.values.items() if key.startswith(place)]


@pytest.mark.parametrize(("other", "message"), [(8, None), (9, r"rows is 8 in process 0 and 9 in process 1; look at the files")])
def test_processes_that_found_different_data_say_so(monkeypatch, other, message):
    store = Store({f"{processes.FACTS}the data are read/1": json.dumps({"rows": other})})
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(ocp.multihost, "get_jax_distributed_client", lambda: store)
    monkeypatch.setattr(processes, "wait_for_all", lambda what, seconds: None)
    if message is None:
        processes.agree("the data are read", {"rows": 8})
        return
    with pytest.raises(ConfigError, match=message):
        processes.agree("the data are read", {"rows": 8})
