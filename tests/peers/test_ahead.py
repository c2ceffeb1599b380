"""A step really compiled for a TPU that is not there. Needs libtpu; a minute each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
    *(f"--config.model.{tower}.width=16" for tower in ("image", "text")),
    "--config.model.text.heads=2",
    "--config.model.embed_dim=16",
    "--config.data.image_size=16",
    "--config.data.vocab_size=300",
    "--config.objective.bank_size=64",
    "--config.objective.cla.width=16",
    "--config.train.batch_size=64",
)


def compiled(*arguments):
    command = [sys.executable, "-m", "launch.compile", "--config=configs/emoji_bacl.py", *SMALL, *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1500)


def test_the_report_of_a_small_step(tmp_path):
    done = compiled("--topology=v5e:2x2", f"--out={tmp_path}/report.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["topology", "fits", "hbm_bytes", "loss_temp_bytes", "flops", "step_seconds", "collectives"]
    hbm = report["hbm_bytes"]
    assert list(hbm) == ["total", "params", "optimizer", "bank", "activations", "temp", "limit"]
    assert hbm["total"] == sum(hbm[kind] for kind in ("params", "optimizer", "bank", "activations", "temp"))
    assert (report["topology"], report["fits"], hbm["limit"]) == ("v5e:2x2", True, 16 * 10**9)
    assert hbm["params"] < hbm["optimizer"] < 3 * hbm["params"]
    assert report["step_seconds"] * 197e12 >= report["flops"] > 0
    found = {(one["kind"], one["count"]) for one in report["collectives"]}
    assert any(kind == "all-reduce" for kind, _ in found)
    assert any(kind == "collective-permute" and count % 4 == 0 for kind, count in found), "rows that travel round four chips"
    assert "fits: " in done.stdout


@pytest.mark.parametrize("topology", ["v5e:3x5", "v9:2x2", "v5e"])
def test_an_unknown_topology_is_one_line_and_exit_code_2(topology):
    done = compiled(f"--topology={topology}")
    assert done.returncode == 2, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        line for line in done.stderr.splitlines() if f"--topology={topology}" in line
    ]
