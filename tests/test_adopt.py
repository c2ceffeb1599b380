"""The doors of interop, end to end: train, export, adopt what was exported, evaluate it to equal numbers; bad use is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SMALL = (
    "--config.model.embed_dim=8",
    *(f"--config.model.{tower}.{field}" for tower in ("image", "text") for field in ("width=8", "depth=1", "heads=2")),
    "--config.model.image.patch=8",
    "--config.data.vocab_size=540",
    "--config.objective.bank_size=16",
    "--config.objective.bns.pool=4",
    "--config.objective.bns.k=2",
    "--config.objective.cla.width=8",
    "--config.train.batch_size=8",
    "--config.train.steps=2",
    "--config.optim.warmup_steps=1",
)


def launch(door, *arguments):
    command = [sys.executable, "-m", f"launch.{door}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False)


def refused(done, said):
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    return True


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    r, lines = np.random.default_rng(0), ["image,caption,split"]
    for i in range(36):
        Image.fromarray(r.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{('red', 'blue', 'green')[i % 3]} thing {i},{('train', 'train', 'test')[i // 12]}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


@pytest.fixture(scope="module")
def trained(pairs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "vit"
    data = ("--config.data.kind=manifest", f"--config.data.path={pairs}", "--config.data.split_column=split", "--config.eval.plots=False")
    done = launch("train", "--config=configs/emoji_vit_bacl.py", f"--workdir={workdir}", *SMALL, *data)
    assert done.returncode == 0, done.stderr
    return workdir


def result(workdir, step):
    return json.loads((workdir / "eval" / str(step) / "retrieval.json").read_text())["metrics"]


@pytest.mark.parametrize("target", ["hf", "open_clip"])
def test_what_was_exported_is_adopted_and_scores_the_same(trained, pairs, tmp_path, target):
    out, workdir = tmp_path / "out", tmp_path / "adopted"
    done = launch("export", f"--workdir={trained}", f"--format={target}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert str(out / "tokenizer.json") in done.stdout
    assert "| retrieval | manifest/test | i2t_R@1 |" in (out / "README.md").read_text()
    data = ("--config.data.kind=manifest", f"--config.data.path={pairs}", "--config.data.split_column=split", "--config.eval.plots=False")
    done = launch("adopt", f"--path={out}", f"--workdir={workdir}", *data)
    assert done.returncode == 0, done.stderr
    done = launch("evaluate", f"--workdir={workdir}", "--tasks=retrieval")
    assert done.returncode == 0, done.stderr
    assert result(workdir, 0) == pytest.approx(result(trained, 2), abs=1e-9)
    assert refused(launch("adopt", f"--path={out}", f"--workdir={workdir}", *data), "has checkpoints of steps 0; take another one")
    assert refused(launch("export", f"--workdir={trained}", f"--format={target}", f"--out={out}"), "is there already")


def test_bad_use_is_one_line(trained, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04.")
    assert refused(launch("adopt", f"--path={tmp_path}", f"--workdir={tmp_path / 'run'}"), "a pickle, which can execute anything")
    assert refused(launch("adopt", f"--workdir={tmp_path / 'run'}"), "--path and --workdir must be given")
    assert refused(launch("export", f"--workdir={trained}", "--format=onnx", f"--out={tmp_path / 'out'}"), "must be one of hf, open_clip")
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_form_is_refused_with_the_part_that_clip_lacks(pairs, tmp_path):
    data = ("--config.data.kind=manifest", f"--config.data.path={pairs}", "--config.data.split_column=split")
    data = (*data, "--config.eval.tasks=()", "--config.train.keep_best=None")
    done = launch("train", "--config=configs/emoji_clip.py", f"--workdir={tmp_path / 'run'}", *SMALL, *data)
    assert done.returncode == 0, done.stderr
    done = launch("export", f"--workdir={tmp_path / 'run'}", "--format=hf", f"--out={tmp_path / 'out'}")
    assert refused(done, "config.model.image.kind = 'conv': CLIPModel's image tower is a vision transformer with a class token")
