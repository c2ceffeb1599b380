"""Whole training runs over shards that fail: for a while, for good, in the middle of the run, while it is evaluated."""

import dataclasses
import functools
import importlib
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import loopback
import numpy as np
import pytest
import tiny
from PIL import Image

from bacl_jax import data
from bacl_jax.config import from_config_dict
from bacl_jax.data import faults, storage, stream, tar_index
from bacl_jax.data.loader import BatchBuilder
from bacl_jax.errors import DataError
from bacl_jax.train import step as train_step
from bacl_jax.train.hooks import Preemption
from launch import session

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "train.steps": 8,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.eval_every": 0,
    "train.save_every": 100,
    "train.save_minutes": None,
    "train.keep_best": None,
    "eval.tasks": (),
    "optim.warmup_steps": 1,
    "model.embed_dim": 16,
    "model.image.width": 8,
    "model.image.depth": 1,
    "model.text.width": 16,
    "objective.bns.enabled": False,
    "objective.cla.enabled": False,
    "objective.bank_size": 16,
    "data.image_size": 16,
    "data.tokenizer": "word",
    "data.threads": 1,
    "data.prefetch": 1,
    "data.validation_rows": 0,
    "data.test_rows": 0,
    "data.max_error_share": 1.0,
}
SHARDS, ROWS = 4, 12  # of each

built = functools.cache(train_step.build)  # compiled once for all runs that differ in their data alone


def _member(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    """Indexed tar shards 0.tar ... 3.tar in a folder of their own."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for row in range(shard * ROWS, (shard + 1) * ROWS):
                picture = io.BytesIO()
                Image.new("RGB", (20, 18), (5 * row, 0, 99)).save(picture, "PNG")
                _member(archive, f"{row:03d}.png", picture.getvalue())
                _member(archive, f"{row:03d}.txt", f"number {row % 5} of {row}".encode())
    tar_index.build(str(folder))
    return folder


@pytest.fixture
def server(shards, monkeypatch):
    with loopback.serving(monkeypatch) as running:
        running.files = {f"/{path.name}": path.read_bytes() for path in shards.glob("*.tar")}
        yield running


@pytest.fixture
def run(shards, monkeypatch):
    """run(workdir, path, **settings): one call of launch.session.train, stopped by a signal at a step if one is named; it gives what each
    step's batch holds and the lines of metrics.jsonl."""
    monkeypatch.setattr(session, "make_mesh", lambda config: tiny.one_device())
    monkeypatch.setattr(session, "build", build)
    seen, call = {}, BatchBuilder.__call__

    def recorded(self, step):
        step, batch = call(self, step)
        seen[step] = (batch.index.tolist(), batch.inputs["image"].values.tobytes())
        return step, batch

    monkeypatch.setattr(BatchBuilder, "__call__", recorded)

    def run(workdir, path, stop=None, **settings):
        seen.clear()
        config = _config(path, shards, **settings)
        with Preemption() as preemption, pytest.MonkeyPatch.context() as patch:
            patch.setattr(preemption, "reached", lambda step: step == stop)
            assert session.train(config, str(workdir), preemption) == (stop is None)
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return {step: rows for step, rows in seen.items() if step < (stop or config.train.steps)}, lines

    return run


def build(config, vocab_size, mesh, stored):
    assert not stored
    nowhere = dataclasses.replace(config.data, path="", index=None)
    return built(dataclasses.replace(config, data=nowhere), vocab_size, mesh)


def _config(path, shards, **settings):
    flat = importlib.import_module("configs.webdataset").get_config()
    flat.update_from_flattened_dict(SETTINGS | {"data.path": path, "data.index": f"{shards}/shards.index"} | settings)
    return from_config_dict(flat)


def _errors(workdir):
    path = workdir / "data_errors.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _within(errors):
    """Those of the run's own steps: how much is read ahead of the end depends on the time."""
    return [each for each in errors if each["step"] is not None and each["step"] < SETTINGS["train.steps"]]


def _all(where):
    return f"{where}/{{0..{SHARDS - 1}}}.tar"


def _losses(lines):
    return [line["loss"] for line in lines]


def test_a_remote_that_fails_for_a_while_changes_nothing(run, server, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "TIMEOUT", 0.2)
    monkeypatch.setattr(stream, "_THREADS", 1)  # else one request may meet the faults that are meant for several
    batches, lines = run(tmp_path / "local", _all(shards))
    draw = random.Random(0)
    server.faults = [
        fault
        for _ in range(40)
        for fault in (*draw.choices([500, 503, 429, "drop", "cut", "hang", "slow"], k=draw.randrange(storage.TRIES)), None)
    ]
    again, remote_lines = run(tmp_path / "remote", _all(server.url))
    assert server.faults == []
    assert (batches, _losses(lines)) == (again, _losses(remote_lines))
    assert _errors(tmp_path / "remote") == []
    assert {line["data/bad_rows"] for line in remote_lines} == {0}


def test_a_shard_that_vanishes_is_replaced_alike_after_a_resume(run, server, tmp_path, capsys):
    lost = f"{server.url}/2.tar"

    def lives():
        return {"/2.tar": 1 + ROWS + 4}  # its size is asked for, the tokenizer is trained on its captions, four rows are read

    server.lives = lives()
    whole, lines = run(tmp_path / "whole", _all(server.url))
    errors = _errors(tmp_path / "whole")
    assert {(each["kind"], each["shard"]) for each in errors} == {("missing", lost)}
    assert all(2 * ROWS <= each["row"] < 3 * ROWS for each in errors)
    assert 5 < len(_within(errors)) == lines[-1]["data/bad_rows"] <= len(errors)
    assert f"left out, missing: {len(errors)}, in 1 files, most ({len(errors)}) in {lost}" in capsys.readouterr().out
    lost_at = min(each["step"] for each in errors)
    assert 0 < lost_at < 4
    for step, (rows, _) in whole.items():
        assert step <= lost_at or not set(rows) & set(range(2 * ROWS, 3 * ROWS))

    server.lives = lives()
    first, _ = run(tmp_path / "parts", _all(server.url), stop=4)
    second, lines_of_parts = run(tmp_path / "parts", _all(server.url))  # the shard is gone when it is opened
    assert first | second == whole
    assert _losses(lines_of_parts) == _losses(lines)
    assert _within(_errors(tmp_path / "parts")) == _within(errors)
    [opened] = [each for each in _errors(tmp_path / "parts") if each["step"] is None]
    assert (opened["kind"], opened["shard"]) == ("missing", lost)


def test_a_row_that_failed_once_stays_replaced_though_the_remote_recovers(run, server, tmp_path):
    def fail():
        server.faults = [None] * (SHARDS + SHARDS * ROWS + 28) + [500] * storage.TRIES

    fail()
    whole, lines = run(tmp_path / "whole", _all(server.url), **{"train.save_every": 2})
    [error] = _errors(tmp_path / "whole")
    assert (error["kind"], error["step"]) == ("remote", 3)
    fail()
    run(tmp_path / "parts", _all(server.url), stop=4, **{"train.save_every": 2})
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")  # as if it had been killed before
    second, lines_of_parts = run(tmp_path / "parts", _all(server.url), **{"train.save_every": 2})
    assert second == {step: rows for step, rows in whole.items() if step >= 2}
    assert _losses(lines_of_parts) == _losses(lines)
    assert _errors(tmp_path / "parts") == [error]


def test_more_than_the_allowed_share_ends_the_run(run, server, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "_AT_LEAST", 30)
    server.lives = {"/2.tar": 1 + ROWS + 2}
    with pytest.raises(DataError, match=rf"more than data\.max_error_share = 0\.1: most often 'missing' in {server.url}/2\.tar") as caught:
        run(tmp_path / "run", _all(server.url), **{"data.max_error_share": 0.1})
    assert caught.value.kind == "too_many"
    assert {each["kind"] for each in _errors(tmp_path / "run")} == {"missing"}


def test_raise_ends_the_process_with_one_line_and_code_2(server, shards, tmp_path):
    server.lives = {"/2.tar": 1 + ROWS + 4}
    settings = SETTINGS | {"data.path": _all(server.url), "data.index": f"{shards}/shards.index", "data.on_error": "raise"}
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", "--config=configs/webdataset.py", f"--workdir={tmp_path}/run", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    remedy = "correct the path; or leave such rows out: data.on_error = skip"
    assert done.stderr == f"error: {server.url}/2.tar: not found, or not to be read; {remedy}\n"


@pytest.mark.parametrize("change", ["deleted", "another file"])
def test_a_local_shard_that_is_open_is_read_on(run, shards, tmp_path, change):
    """Opened files are held; when the run starts again the shard is gone, or another one, and its rows are replaced."""
    whole, lines = run(tmp_path / "whole", _all(shards))
    removed = itertools.count()

    def remove(step):
        if step == 1 and next(removed) == 0:
            (shards / "2.tar").unlink()
            if change != "deleted":
                (shards / "2.tar").write_bytes((shards / "1.tar").read_bytes()[:-512])

    with pytest.MonkeyPatch.context() as patch:
        call = BatchBuilder.__call__
        patch.setattr(BatchBuilder, "__call__", lambda self, step: (remove(int(step)), call(self, step))[1])
        again, lines_again = run(tmp_path / "again", _all(shards))
    assert (again, _losses(lines_again)) == (whole, _losses(lines))
    more, _ = run(tmp_path / "again", _all(shards), **{"train.steps": 12})
    assert not set(itertools.chain(*(rows for rows, _ in more.values()))) & set(range(2 * ROWS, 3 * ROWS))
    kinds = Counter((each["kind"], each["shard"], each["step"] is None) for each in _errors(tmp_path / "again"))
    kind = "missing" if change == "deleted" else "changed"
    assert kinds.keys() == {(kind, str(shards / "2.tar"), opening) for opening in (True, False)}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_hold_out_that_vanishes_ends_the_evaluation_and_is_counted_at_the_next_start(shards, on_error):
    """Results over fewer rows than before could not be compared, so the run stops with the row's name; what is left is used when it starts
    again, and the description tells how many."""
    config = _config(_all(shards), shards, **{"data.validation_rows": 20, "data.on_error": on_error}).data
    before = data.load(dataclasses.replace(config))
    assert len(before.splits["validation"].source) == 20
    whole = (shards / "2.tar").read_bytes()
    dropped = data.load(config)  # its files are open
    (shards / "2.tar").unlink()
    for images, _ in data.eval_batches(before.splits["validation"].source, config, 8):
        assert np.asarray(images).any()
    closed = dataclasses.replace(dropped.splits["validation"].source.source, records=_closed(dropped))
    source = dataclasses.replace(dropped.splits["validation"].source, source=closed)
    with pytest.raises(DataError, match=r"2\.tar: cannot be read") as caught:
        list(data.eval_batches(source, config, 8))
    assert caught.value.kind == "missing"
    if on_error == "raise":
        with pytest.raises(DataError, match=r"2\.tar"):
            data.load(config)
    else:
        after = data.load(config)
        assert len(after.train) == len(before.train)
        assert len(after.splits["validation"].source) == 20 - after.skipped["missing"]
        assert {(each.kind, each.shard) for each in after.left_out} == {("missing", str(shards / "2.tar"))}
    (shards / "2.tar").write_bytes(whole)


def _closed(dataset):
    """The data set's records, none of its files open."""
    records = dataset.train.records
    records._reader = storage.Reader()
    return records
