"""`launch.train --check`: the numbers of the plan, and everything that it finds wrong."""

import dataclasses
import importlib
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small_pairs
import tiny
from absl import flags

from bacl_jax.config import ConfigError, contradictions, from_config_dict
from bacl_jax.data.source import ArraySource, EvalSplit, Part
from bacl_jax.errors import DataError
from bacl_jax.mesh import to_global
from bacl_jax.settings import Problems
from bacl_jax.train import flops, plan
from bacl_jax.train.step import build
from bacl_jax.train.workdir import check_free, lock_workdir
from launch import check, check_page, early, session


@pytest.fixture(scope="module")
def trainer():
    return build(tiny.plain(), tiny.VOCABULARY, tiny.one_device())


@pytest.fixture(scope="module")
def needs(trainer):
    return plan.needs(trainer, to_global(trainer.mesh, tiny.batch()))


def test_what_a_step_needs(trainer, needs):
    state, batch = trainer.abstract_state(), tiny.batch()
    assert sum(needs.parameters.values()) == needs.trained == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert {"image tower", "text tower", "log scale"} <= needs.parameters.keys()
    assert needs.flops == flops.count(trainer.step, state, batch) > 1e6
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert needs.checkpoint == held
    rows = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
    assert held + rows < needs.memory < 100 * (held + rows)
    assert needs.limit == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    assert needs.fits
    assert not dataclasses.replace(needs, limit=needs.memory - 1).fits


def test_a_device_that_tells_its_memory():
    assert plan.limit(SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 7})) == 7
    assert plan.limit(SimpleNamespace(platform="tpu", memory_stats=lambda: None)) is None


def test_measured_steps(trainer, needs):
    """The first one is not measured, and each takes a batch."""
    batches = ((number, tiny.batch(number)) for number in range(9))
    seconds, waited = plan.seconds_a_step(trainer, needs.compiled, trainer.init(0), batches, 4)
    assert 0 < waited < seconds
    assert next(batches)[0] == 5


@pytest.mark.parametrize(("best", "evaluated", "count"), [("i2t_R@1", True, 5), ("i2t_R@1", False, 4), (None, True, 4)])
def test_checkpoints_that_lie_on_the_disk(best, evaluated, count):
    config = tiny.plain()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, keep=3, keep_best=best))
    assert plan.checkpoints_at_once(config, evaluated=evaluated) == count


def test_every_contradiction_is_found():
    config = tiny.plain()
    train, data = dataclasses.replace(config.train, steps=5), dataclasses.replace(config.data, kind="manifest")
    fields = [str(one).split(" ")[0] for one in contradictions(dataclasses.replace(config, train=train, data=data))]
    assert fields == ["config.data.path", "config.optim.warmup_steps"]


def test_a_workdir_is_looked_at_without_a_trace(tmp_path):
    check_free(tmp_path / "a" / "run")
    with lock_workdir(tmp_path / "run"):
        before = (tmp_path / "run" / "lock").stat()
        with pytest.raises(ConfigError, match=rf"run is in use by another process \(pid {os.getpid()}\)"):
            check_free(tmp_path / "run")
    check_free(tmp_path / "run")
    (tmp_path / "file").touch()
    for workdir in ("/proc/none", tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=r"--workdir=.* cannot be written: .*; take another --workdir"):
            check_free(workdir)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "lock", "run"]
    assert (tmp_path / "run" / "lock").stat().st_mtime_ns == before.st_mtime_ns


class Rows(ArraySource):
    """Those whose caption is bad cannot be decoded."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        if example.caption == "bad":
            raise DataError(f"row {index} is bad")
        return example


def rows(captions):
    return Rows([np.zeros((4, 4, 3), np.uint8)] * len(captions), captions, [""] * len(captions))


@pytest.mark.parametrize(("on_error", "found"), [("raise", ["row 1 is bad", "row 100 is bad", "row 0 is bad"]), ("skip", ["row 0 is bad"])])
def test_the_first_rows_of_each_source_and_split_are_decoded(on_error, found):
    train = ["good"] * 1000
    train[1] = train[50] = train[100] = "bad"  # row 50 is beyond the first ones of its source
    splits = {"validation": EvalSplit(rows(["bad"]), np.zeros(1, int)), "test": EvalSplit(rows([]), np.zeros(0, int))}
    dataset = SimpleNamespace(train=rows(train), parts=lambda: (Part("a", 100), Part("b", 900)), splits=splits)
    config = SimpleNamespace(data=SimpleNamespace(on_error=on_error))
    assert [str(error) for error in check.unreadable(dataset, config)] == found


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run on 24 pairs and one device."""
    pairs = small_pairs.squares(tmp_path, lambda number: "validation" if number > 19 else "train", side=16)
    for module in (check, session):
        monkeypatch.setattr(module, "make_mesh", lambda config: tiny.one_device())
    flags.FLAGS.mark_as_parsed()
    settings = importlib.import_module("configs.manifest").get_config()
    settings.update_from_flattened_dict(
        {
            "data.path": str(pairs),
            "data.split_column": "split",
            "data.image_size": 16,
            "data.tokenizer": "word",
            "model.embed_dim": 16,
            "model.image.width": 8,
            "model.image.depth": 1,
            "model.text.width": 16,
            "model.text.depth": 1,
            "objective.bns.enabled": False,
            "objective.cla.enabled": False,
            "objective.bank_size": 16,
            "optim.warmup_steps": 1,
            "train.batch_size": 8,
            "train.steps": 100,
            "eval.tasks": ("retrieval", "halftrue"),
        }
    )
    return from_config_dict(settings)


def test_bad_data_and_a_batch_that_does_not_divide_are_both_found(config, tmp_path):
    (tmp_path / "3.png").write_text("no picture")
    odd = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batches=3))
    with pytest.raises(Problems) as error:
        check.run(odd, str(tmp_path / "run"))
    bad, batch = error.value.lines
    assert "3.png" in bad
    assert batch.startswith("train.batch_size 8 does not divide over 3 ")
    assert not (tmp_path / "run").exists()


def test_a_machine_that_is_too_small(needs):
    config, disk = tiny.plain(), check_page.Disk(at_once=4, there=100_000, free=2000)
    assert disk.lacks(needs.checkpoint) == 4 * needs.checkpoint - 102_000 > 0
    memory, room = map(str, check.too_small(config, dataclasses.replace(needs, limit=1000), disk))
    assert "on a device, which has 1.0 kB: raise --config.train.micro_batches (now 1) or --config.mesh.fsdp (now 1)" in memory
    assert "on the disk of the workdir, and 2.0 kB are free: make room, lower --config.train.keep (now 2)" in room
    assert not [*check.too_small(config, needs, dataclasses.replace(disk, there=10**7))]
    (said,) = check.too_small(config, dataclasses.replace(needs, compiled=None, limit=None), dataclasses.replace(disk, free=10**7))
    assert "which has less" in str(said)


def test_a_run_that_has_begun_needs_no_vocabulary_file(tmp_path):
    config = from_config_dict({"data": {"tokenizer": "file", "tokenizer_path": str(tmp_path / "none.json")}})
    (refused,) = early.problems(config, str(tmp_path / "run"), None)
    assert str(refused).startswith(f"config.data.tokenizer_path = '{tmp_path}/none.json': there is no {tmp_path}/none.json")
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    assert list(early.problems(config, str(tmp_path / "run"), None)) == []
