"""A step really compiled for a TPU that is not there. Needs libtpu; a minute each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
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
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=1500)


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


@pytest.mark.parametrize(("topology", "chips"), [("v4:2x2x1", 4), ("v5e:2x4", 8), ("v5p:2x2x3", 12), ("v6e:4x4", 16)])
def test_a_device_is_a_chip(topology, chips):
    """What a v4 chip's two cores make together is one device, as the step expects; asked for in a process of its own."""
    code = f"from bacl_jax.train import ahead; print(len(jax.make_mesh(({chips},), 'x', devices=ahead.devices('{topology}')).devices))"
    done = subprocess.run(
        [sys.executable, "-c", "import jax; " + code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{chips}\n"), done.stderr
