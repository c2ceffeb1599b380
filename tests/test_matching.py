"""Captions found for pictures without one: the soft assignment, and the manifest that launch.match writes by two runs."""

import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from bacl_jax import data
from bacl_jax.config import ConfigError, DataConfig, OptimConfig
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.errors import DataError
from bacl_jax.eval import found_pairs, matching
from bacl_jax.train.checkpoint import Checkpoints, Position
from bacl_jax.train.step import build
from bacl_jax.train.workdir import claim_workdir

ROOT = Path(__file__).parents[1]
COLUMNS = {"image_column": "file", "caption_column": "title", "split_column": "split", "id_column": "key"}


def unit(random, count, width):
    x = random.normal(size=(count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def dense(z, w, count, tau, iterations):
    """Sinkhorn's iteration on the whole plan."""
    q = np.exp(z.astype(np.float64) @ w.T / tau)
    q /= q.sum(1, keepdims=True)
    for _ in range(iterations):
        q *= len(z) * count / count.sum() / q.sum(0)
        q /= q.sum(1, keepdims=True)
    return q


@pytest.mark.parametrize(("n", "m", "chunk"), [(7, 5, 4), (8, 8, 4), (5, 9, 16)])
def test_the_plan_is_that_of_the_whole_matrix(monkeypatch, n, m, chunk):
    monkeypatch.setattr(matching, "CHUNK", chunk)
    random = np.random.default_rng(n)
    z, w, count = unit(random, n, 4), unit(random, m, 4), random.integers(1, 4, m)
    found = matching.assign(z, w, count, tau=0.2, iterations=9)
    q = dense(z, w, count, 0.2, 9)
    np.testing.assert_array_equal(found.caption, q.argmax(1))
    np.testing.assert_allclose(found.confidence, q.max(1), rtol=2e-5)


def test_a_caption_like_all_pictures_is_not_taken_by_all():
    random = np.random.default_rng(0)
    z = unit(random, 40, 12)
    w = z + 0.1 * unit(random, 40, 12)
    w[0] = 3 * z.mean(0) + z[0]  # a hub
    z, w = (x / np.linalg.norm(x, axis=1, keepdims=True) + 2 * np.eye(12)[0] for x in (z, w))
    w[0] *= 1.3
    assert ((z @ w.T).argmax(1) == np.arange(40)).mean() < 0.5
    found = matching.assign(z, w, np.ones(40, int), tau=0.05)
    assert (found.caption == np.arange(40)).mean() > 0.9


def test_the_mean_cosine_of_runs_decides():
    random = np.random.default_rng(1)
    z, w = ([unit(random, 6, d) for d in (3, 5)] for _ in range(2))
    s = matching.joined(z) @ matching.joined(w).T
    np.testing.assert_allclose(s, (z[0] @ w[0].T + z[1] @ w[1].T) / 2, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(matching.joined(z), axis=1), 1, rtol=1e-6)


@pytest.fixture
def folder(tmp_path):
    """Two runs and a manifest with 4 pairs for training, 5 pictures and 4 captions alone, and a held-out pair."""
    lines = [(f"{i}.png", f"a {i}", "train") for i in range(4)] + [(f"{i}.png", "", "train") for i in range(4, 9)]
    lines += [("", f"a {i}", "train") for i in (4, 5, 6, 6)] + [("9.png", "a 9", "test")]
    for image in range(10):
        Image.fromarray(np.full((16, 16, 3), 25 * image, np.uint8)).save(tmp_path / f"{image}.png")
    with (tmp_path / "mixed.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "file", "title", "split", "truth"])
        writer.writerows(
            [i, image, title, split, f"a {image[:1]}" if image and not title else ""] for i, (image, title, split) in enumerate(lines)
        )
    plain = dataclasses.replace(tiny.plain(), optim=OptimConfig(warmup_steps=1))
    config = dataclasses.replace(plain, data=dataclasses.replace(plain.data, kind="manifest", path=str(tmp_path / "mixed.csv"), **COLUMNS))
    tokenizer = Tokenizer.train([f"a {i}" for i in range(10)], config.data)
    trainer = build(config, tokenizer.vocab_size, tiny.one_device())
    for seed in (0, 1):
        claim_workdir(tmp_path / f"run{seed}", config)
        with Checkpoints(tmp_path / f"run{seed}", keep=1) as saved:
            saved.save(trainer.init(seed), Position(step=2), (), config, tokenizer.to_json())
            saved.wait()
    return tmp_path


def match(folder, *further):
    runs = ",".join(str(folder / f"run{seed}") for seed in (0, 1))
    command = [sys.executable, "-m", "launch.match", f"--workdirs={runs}", f"--manifest={folder / 'mixed.csv'}", *further]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False)


def test_found_pairs_are_a_manifest_that_trains(folder):
    out = folder / "found.csv"
    done = match(folder, f"--out={out}", "--share=0.6", "--truth_column=truth")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 of 5 pictures got a caption, out of 4 rows" in done.stdout
    assert "% of them their own" in done.stdout
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    given, found = ([row for row in rows if bool(row["confidence"]) == sure] for sure in (False, True))
    assert [(row["file"], row["title"], row["split"]) for row in given] == [(f"{i}.png", f"a {i}", "train") for i in range(4)] + [
        ("9.png", "a 9", "test")
    ]
    assert {row["title"] for row in found} <= {"a 4", "a 5", "a 6"}
    assert {row["file"] for row in found} <= {f"{i}.png" for i in range(4, 9)}
    assert all(row["truth"] == f"a {row['file'][0]}" for row in found)
    assert sorted((float(row["confidence"]) for row in found), reverse=True) == [float(row["confidence"]) for row in found]
    dataset = data.load(DataConfig(kind="manifest", path=str(out), **COLUMNS))
    assert (len(dataset.train), len(dataset.splits["test"].source)) == (7, 1)
    assert not list(folder.glob(".*"))


def test_bad_use_is_one_line(folder):
    for further, said in (([f"--out={folder.parent / 'found.csv'}"], "in the folder of --manifest"), ([], "--out must be given")):
        done = match(folder, *further)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert said in done.stderr


def test_rows_that_lack_only_one_of_both_find_nothing(folder):
    text = (folder / "mixed.csv").read_text()
    (folder / "mixed.csv").write_text("\n".join(line for line in text.splitlines() if ",,a " not in line))
    settings = DataConfig(kind="manifest", path=str(folder / "mixed.csv"), **COLUMNS)
    with pytest.raises(ConfigError, match="5 training rows lack a caption and 0 an image"):
        found_pairs.find([folder / "run0"], settings, share=0.5, tau=0.1)


def test_a_picture_that_cannot_be_read_is_left_out_or_ends_it(folder):
    (folder / "5.png").write_bytes(b"no picture")
    settings = DataConfig(kind="manifest", path=str(folder / "mixed.csv"), on_error="skip", **COLUMNS)
    found = found_pairs.find([folder / "run0"], settings, share=1.0, tau=0.1)
    assert found.pictures == 4
    assert sorted(Path(row.path).name for row in found.found) == ["4.png", "6.png", "7.png", "8.png"]
    with pytest.raises(DataError, match=r"5\.png"):
        found_pairs.find([folder / "run0"], dataclasses.replace(settings, on_error="raise"), share=1.0, tau=0.1)
