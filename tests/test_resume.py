"""A run that is killed anywhere and started again is bit for bit the run that was not. Real processes, real signals."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bacl_jax.train import goodput
from bacl_jax.train.workdir import saved_steps

ROOT = Path(__file__).parents[1]
STEPS = 40


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One compilation for all runs; the fake devices of this process are not for the children."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | cache | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def start(workdir, environment):
    command = [sys.executable, str(ROOT / "tests" / "resume_run.py"), str(workdir), str(STEPS)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return out


def logged_steps(workdir):
    path = workdir / "metrics.jsonl"
    return [int(step) for step in re.findall(r'^{"step": (\d+)', path.read_text(), re.MULTILINE)] if path.exists() else []


def stop_at(process, workdir, step, number, delay):
    """Sends the signal `delay` seconds after `step` was logged; the log may still be that of the run before."""
    before = logged_steps(workdir)
    while process.poll() is None:
        now = logged_steps(workdir)
        if now and now[-1] >= step and now != before:
            time.sleep(delay)
            process.send_signal(number)
            break
        time.sleep(0.002)
    return process.communicate(timeout=500)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, environment):
    workdir = tmp_path_factory.mktemp("whole")
    finish(start(workdir, environment))
    return dict(np.load(workdir / "final.npz"))


def assert_equal(workdir, expected):
    found = dict(np.load(workdir / "final.npz"))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name, strict=True)
    assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()] == list(range(1, STEPS + 1))


def test_the_comparison_sees_what_it_should(uninterrupted):
    names = " ".join(uninterrupted)
    for part in (".params", ".ema", ".opt_state", ".bank", ".rng", "policy", "log_scale"):
        assert part in names
    assert uninterrupted["next_rows"].shape == (100, 16)
    assert (uninterrupted[".bank.index"] >= 0).all()
    assert len({tuple(rows) for rows in uninterrupted["next_rows"].tolist()}) == 100


def test_two_runs_are_equal(uninterrupted, environment, tmp_path):
    finish(start(tmp_path, environment))
    assert_equal(tmp_path, uninterrupted)


def test_killed_at_random_moments(uninterrupted, environment, tmp_path):
    dice = random.Random(20251108)
    kills = lost = 0
    for step in sorted(dice.sample(range(1, STEPS - 4), 4)):
        process = start(tmp_path, environment)
        stop_at(process, tmp_path, step, signal.SIGKILL, dice.uniform(0, 0.02))
        kills += process.returncode == -signal.SIGKILL
        lost += logged_steps(tmp_path)[-1] > max(saved_steps(tmp_path), default=0)  # on a slow machine the clock saves each step
    assert kills >= 3
    finish(start(tmp_path, environment))
    assert_equal(tmp_path, uninterrupted)
    starts = goodput.read(tmp_path)
    assert len(starts) >= kills
    assert sum(one.seconds["lost"] > 0 for one in starts) >= lost - 1  # one may have been killed within a beat of its save
    for one in starts:
        assert sum(one.seconds.values()) == pytest.approx(one.ended - one.began, abs=1e-5)
    assert sum(goodput.shares(goodput.totals(starts)).values()) == pytest.approx(1)
    assert all(before.ended <= after.began for before, after in itertools.pairwise(starts))


def test_sigterm_saves_and_leaves_with_exit_code_0(uninterrupted, environment, tmp_path):
    process = start(tmp_path, environment)
    out, err = stop_at(process, tmp_path, 11, signal.SIGTERM, 0)
    assert process.returncode == 0, err
    status, step = re.search(r"^(preempted|done) (\d+)$", out, re.MULTILINE).groups()
    assert status == "preempted"
    assert "preempted, resume with the same command" in out
    assert (tmp_path / "checkpoints" / step / "SHA256SUMS").is_file()
    assert 11 <= int(step) < STEPS
    finish(start(tmp_path, environment))
    assert_equal(tmp_path, uninterrupted)
