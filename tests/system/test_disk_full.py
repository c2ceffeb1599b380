"""The disk fills up while a run saves. Needs root: the disk is a small tmpfs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SIZE = 24 * 2**20
SETTINGS = (
    "--config=configs/manifest.py",
    "--config.data.tokenizer=word",
    "--config.data.image_size=8",
    "--config.data.threads=1",
    "--config.data.prefetch=1",
    *(f"--config.model.{tower}.{field}" for tower in ("image", "text") for field in ("width=64", "depth=1")),
    "--config.objective.bns.enabled=False",
    "--config.objective.cla.enabled=False",
    "--config.objective.bank_size=16",
    "--config.optim.warmup_steps=1",
    "--config.train.batch_size=8",
    "--config.train.log_every=1",
    "--config.train.save_every=2",
)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "bacl_jax-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def train(disk, tmp_path):
    rows = ["image,caption"]
    for number in range(16):
        Image.new("RGB", (8, 8), (10 * number, 0, 99)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,square {number % 5} of {number % 7}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")

    def train(steps):
        arguments = [
            *SETTINGS,
            f"--config.data.path={tmp_path / 'pairs.csv'}",
            f"--workdir={disk / 'run'}",
            f"--config.train.steps={steps}",
        ]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        command = [sys.executable, "-m", "launch.train", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return train


def fill(disk, left):
    """Takes all space but `left` bytes."""
    state = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(state.f_bavail * state.f_frsize - left))


def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(train, disk):
    assert train(2).returncode == 0
    checkpoint = disk / "run" / "checkpoints" / "2"
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    fill(disk, left=size // 3)
    done = train(4)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]  # orbax's threads may print more
    assert f"no space left for a checkpoint in {checkpoint.parent}: the newest one is of step 2; make room" in line
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=checkpoint, check=False).returncode == 0

    (disk / "ballast").unlink()
    done = train(4)
    assert done.returncode == 0, done.stderr
    assert "step 4/4" in done.stdout
    assert [path.name for path in sorted(checkpoint.parent.iterdir())] == ["2", "4"]
