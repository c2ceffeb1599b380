"""A TPU topology and a report's file are checked before anything is compiled; libtpu is not needed for that, or not even there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bacl_jax.config import ConfigError
from bacl_jax.train import ahead

ROOT = Path(__file__).parents[1]


def compiled(*arguments):
    command = [sys.executable, "-m", "launch.compile", "--config=configs/emoji_bacl.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("v9:2x2", "must be a family of v4, v5e, v5p, v6e and a shape"),
        ("v5e", "must be a family of"),
        ("v5e:0x4", "must be a family of"),
        ("v5e:4x4x4", "a shape of 3 dimensions; v5e has 2, as in v5e:4x4"),
        ("v6e:4", "a shape of 1 dimensions; v6e has 2"),
        ("v5p:4x4", "a shape of 2 dimensions; v5p has 3, as in v5p:4x4x4"),
        ("v4:2x2x2x2", "a shape of 4 dimensions; v4 has 3"),
        ("v5e:3x5", "the first two sizes must be even, for a host has 2x2 chips; take v5e:4x6"),
        ("v5p:4x1x3", "take v5p:4x2x3"),
    ],
)
def test_an_unknown_topology_does_not_come_to_libtpu(topology, said, monkeypatch):
    monkeypatch.setattr(ahead.topologies, "get_topology_desc", None)
    with pytest.raises(ConfigError, match=f"--topology={topology}: .*{said}"):
        ahead.devices(topology)


def test_an_unknown_topology_is_one_line_and_exit_code_2():
    done = compiled("--topology=v5e:4x4x4")
    assert done.returncode == 2
    assert done.stderr == "error: --topology=v5e:4x4x4: a shape of 3 dimensions; v5e has 2, as in v5e:4x4\n"


@pytest.mark.parametrize("path", ["{tmp}/no/report.json", "{tmp}"])
def test_a_report_that_cannot_be_written_is_refused_before_the_compile(path, tmp_path):
    path = path.format(tmp=tmp_path)
    done = compiled("--topology=v9:2x2", f"--out={path}")  # the topology is what would be refused next
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --out={path} cannot be written: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_check_of_the_report_leaves_the_files_as_they_are(tmp_path):
    (tmp_path / "old.json").write_text("{}")
    for name in ("old.json", "new.json"):
        assert "--topology=v9:2x2: must be" in compiled("--topology=v9:2x2", f"--out={tmp_path / name}").stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.json", "{}")]
