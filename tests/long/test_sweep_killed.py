"""A sweep that is killed half-way goes on, and runs no point twice; its best config trains."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import running
import small_pairs

ROOT = Path(__file__).parents[2]
POINTS = 12


def command(door, *arguments):
    return [sys.executable, "-m", f"launch.{door}", *map(str, arguments)]


def started(door, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command(door, *arguments), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(pid):
    """Processes that this one has started, by its threads."""
    return {int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()}


def finished(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/done")}


def wait_until(true, seconds=1800):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_was_ended_half_way_finishes_and_runs_no_point_twice(number, tmp_path):
    """The compiled step is shared by the two, so that a point takes a few seconds."""
    pairs, folder = small_pairs.write(tmp_path / "data"), tmp_path / "runs"
    points = POINTS if number == signal.SIGKILL else 3
    (tmp_path / "seeds.py").write_text(f"def sweep():\n    return ({{'seed': seed}} for seed in range({points}))\n")
    arguments = [*small_pairs.SETTINGS, f"--config.data.path={pairs}", f"--sweep={tmp_path}/seeds.py", f"--workdir={folder}", "--workers=2"]
    first = started("sweep", *arguments)
    wait_until(lambda: len(finished(folder)) >= points // 2 and len(children(first.pid)) == 2)
    runs = children(first.pid)
    first.send_signal(number)
    first.communicate()
    assert first.returncode == (-number if number == signal.SIGKILL else 0)
    wait_until(lambda: not any(map(running.runs, runs)))  # none goes on alone
    before = finished(folder)
    assert points // 2 <= len(before) < points
    outputs = {name: (folder / name / "output.txt").read_text() for name in before}

    second = started("sweep", *arguments)
    said, problems = second.communicate()
    assert second.returncode == 0, problems
    table = pd.read_parquet(folder / "sweep.parquet")
    assert sorted(table.seed) == list(range(points))
    assert set(table.status) == {"done"}
    assert table["i2t_R@1"].notna().all()
    after = finished(folder)
    assert {name: after[name] for name in before} == before
    assert {name: (folder / name / "output.txt").read_text() for name in before} == outputs
    assert len(after) == points
    assert said.count("done before") == len(before)
    if number == signal.SIGKILL:
        best = started("train", f"--config={folder}/best.py", f"--workdir={tmp_path}/best")
        said, problems = best.communicate()
        assert best.returncode == 0, problems
        assert (tmp_path / "best" / "eval" / "4" / "retrieval.json").is_file()
