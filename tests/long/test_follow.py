"""A process that follows a run, beside the process that trains it; and how it ends. Real processes, real signals."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "--config=configs/manifest.py",
    "--config.objective.bns.enabled=False",
    "--config.objective.cla.enabled=False",
    "--config.model.embed_dim=16",
    "--config.model.image.width=16",
    "--config.model.image.depth=1",
    "--config.model.text.width=16",
    "--config.model.text.depth=1",
    "--config.data.tokenizer=word",
    "--config.data.split_column=split",
    "--config.train.batch_size=8",
    "--config.train.log_every=10",
    "--config.train.eval_every=0",
    "--config.train.save_minutes=None",
    "--config.optim.warmup_steps=1",
    "--config.eval.tasks=('retrieval',)",
    "--config.eval.plots=False",
)


def start(door, *arguments):
    command = [sys.executable, "-m", f"launch.{door}", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(workdir, manifest, steps):
    return start("train", *SETTINGS, f"--workdir={workdir}", f"--config.data.path={manifest}", *steps)


def follow(workdir):
    return start("evaluate", f"--workdir={workdir}", "--follow", "--poll_seconds=0.1")


def read_until(process, line):
    """Output up to a line that contains `line`; a process that never writes it is killed."""
    watch = threading.Timer(300, process.kill)
    watch.start()
    found = []
    for each in process.stdout:
        found.append(each)
        if line in each:
            break
    watch.cancel()
    assert line in "".join(found), process.stderr.read()
    return "".join(found)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    lines = ["image,caption,split"]
    for row in range(60):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{row}.png")
        lines.append(f"{row}.png,picture {row} of {row % 7},{('train', 'train', 'test')[row % 3]}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


@pytest.fixture(scope="module")
def followed(manifest, tmp_path_factory):
    """(workdir, output of the follower) of a run that keeps two of its many checkpoints; the follower is there before it."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    follower = follow(workdir)
    begun = read_until(follower, "waiting for a run")
    schedule = ("--config.train.steps=400", "--config.train.save_every=40", "--config.train.keep=2")
    trainer = train(workdir, manifest, schedule)
    said, errors = trainer.communicate(timeout=500)
    assert trainer.returncode == 0, errors
    assert "step 400/400" in said
    out, errors = follower.communicate(timeout=500)
    assert follower.returncode == 0, errors
    assert "Traceback" not in errors
    return workdir, begun + out


def test_it_evaluates_what_it_could_read_and_ends_with_the_run(followed):
    workdir, output = followed
    evaluated = {int(step) for step in re.findall(r"step (\d+): retrieval in ", output)}
    kept = {int(step) for step in re.findall(r"step (\d+): has results", output)}
    skipped = {int(step) for step in re.findall(r"step (\d+): skipped, ", output)}
    assert 400 in evaluated | kept  # the run reports its last step itself, at about the same time
    assert len(evaluated | kept) >= 2
    assert evaluated | kept | skipped <= set(range(40, 401, 40))
    written = {int(path.parent.name): json.loads(path.read_text()) for path in workdir.glob("eval/*/retrieval.json")}
    assert set(written) == evaluated | kept | {400}
    assert all(entry["metrics"]["n"] == 20 for entry in written.values())
    assert len({json.dumps(entry["metrics"]) for entry in written.values()}) > 1
    assert re.search(rf"{len(evaluated | kept)} checkpoints", output)
    assert (workdir / "plots" / "checkpoints.png").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_exit_code_0(followed, tmp_path, number):
    """Before a run has begun, and while it waits for a checkpoint."""
    waiting = follow(tmp_path / "later")
    read_until(waiting, "waiting for a run")
    workdir, _ = followed
    (workdir / "done").unlink(missing_ok=True)
    idle = follow(workdir)
    read_until(idle, "waiting for the next checkpoint")
    for process in (waiting, idle):
        process.send_signal(number)
        out, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert out.endswith("stopped by a signal; the same command goes on\n")
        assert "Traceback" not in errors
