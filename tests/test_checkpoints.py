"""One checkpoint, several, or each as it appears: what is evaluated, what is kept, what is passed over."""

import dataclasses
import json
import shutil

import jax
import pytest
import tiny

from bacl_jax import data
from bacl_jax.config import ConfigError, OptimConfig
from bacl_jax.data import synthetic
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.errors import CheckpointError
from bacl_jax.train.checkpoint import Checkpoints, Position
from bacl_jax.train.step import build
from bacl_jax.train.workdir import claim_workdir
from launch import checkpoints
from launch.session import Run

CONFIG = dataclasses.replace(tiny.plain(groups=8), optim=OptimConfig(warmup_steps=1))
STEPS = (3, 5, 8)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir with a checkpoint of each of STEPS, whose parameters differ; 5 is the best one."""
    workdir = tmp_path_factory.mktemp("run")
    tokenizer = Tokenizer.train(synthetic.load(CONFIG.data).captions, CONFIG.data)
    state = build(CONFIG, tokenizer.vocab_size, tiny.one_device()).init(0)
    claim_workdir(workdir, CONFIG)
    with Checkpoints(workdir, keep=9) as saved:
        for step in STEPS:
            params = jax.tree.map(lambda x, step=step: x * (1 + step / 10) + step / 100, state.params)
            position = Position(step=step, best_step=5, best_value=12.5, best_metric="validation/retrieval/i2t_R@1")
            saved.save(dataclasses.replace(state, params=params), position, (), CONFIG, tokenizer.to_json())
        saved.wait()
    return workdir


@pytest.fixture
def workdir(written, tmp_path):
    return shutil.copytree(written, tmp_path / "run")


@pytest.fixture(autouse=True)
def loads(monkeypatch):
    """The data sets that were loaded."""
    found = []

    def load(config):
        found.append(config)
        return synthetic.load(config)

    monkeypatch.setattr(data, "load", load)
    return found


@pytest.fixture
def reports(monkeypatch):
    """(trainer, step) of each evaluation."""
    made, report = [], Run.report

    def spied(self, workdir, params, step, *rest, **options):
        made.append((self.trainer, step))
        return report(self, workdir, params, step, *rest, **options)

    monkeypatch.setattr(Run, "report", spied)
    return made


def asked(tasks=("retrieval",), split=None, again=False, **fields):
    config = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, plots=False, **fields))
    return checkpoints.Asked(config, tasks, split, again)


def results(workdir, step, subfolder=""):
    return json.loads((workdir / "eval" / str(step) / subfolder / "retrieval.json").read_text())["metrics"]


def test_all_checkpoints_with_one_load_and_one_compilation(workdir, loads, reports, capsys):
    checkpoints.evaluate(str(workdir), "all", asked())
    assert [step for _, step in reports] == list(STEPS)
    assert len(loads) == 1
    (trainer,) = {trainer for trainer, _ in reports}
    assert sum(encoder._cache_size() for encoder in trainer.encoders) == 2
    assert len({json.dumps(results(workdir, step)) for step in STEPS}) == 3
    output = capsys.readouterr().out
    assert "3 checkpoints" in output
    assert (workdir / "plots" / "checkpoints.png").stat().st_size > 5000
    several = {step: results(workdir, step) for step in STEPS}
    for step in STEPS:
        (workdir / "eval" / str(step) / "retrieval.json").unlink()
        checkpoints.evaluate(str(workdir), str(step), asked())
        assert results(workdir, step) == several[step]


def test_what_has_results_is_kept(workdir, reports, capsys):
    checkpoints.evaluate(str(workdir), "3,5", asked())
    checkpoints.evaluate(str(workdir), "all", asked())
    assert [step for _, step in reports] == [3, 5, 8]
    assert "step 3: has results of retrieval, which are kept" in capsys.readouterr().out
    checkpoints.evaluate(str(workdir), "all", asked())
    assert len(reports) == 3
    assert "3 checkpoints" in capsys.readouterr().out
    checkpoints.evaluate(str(workdir), "all", asked(again=True))
    checkpoints.evaluate(str(workdir), "all", asked(batch_size=32))  # another config
    checkpoints.evaluate(str(workdir), "all", asked(batch_size=32, tasks=("retrieval", "halftrue")))  # one task more
    checkpoints.evaluate(str(workdir), "all", asked(split="validation"))
    assert [step for _, step in reports[3:]] == 4 * list(STEPS)
    assert results(workdir, 3, "validation") != results(workdir, 3)
    assert (workdir / "plots" / "checkpoints_validation.png").is_file()


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"config_sha256": '])
def test_a_damaged_result_is_made_anew(workdir, reports, damaged):
    checkpoints.evaluate(str(workdir), "3,5", asked())
    (workdir / "eval" / "3" / "retrieval.json").write_text(damaged)
    checkpoints.evaluate(str(workdir), "3,5", asked())
    assert [step for _, step in reports] == [3, 5, 3]
    assert results(workdir, 3)


def test_a_damaged_checkpoint_is_a_line_among_several(workdir, reports, capsys):
    (workdir / "checkpoints" / "5" / "params" / "manifest.ocdbt").write_bytes(b"")
    checkpoints.evaluate(str(workdir), "all", asked())
    assert [step for _, step in reports] == [3, 8]
    assert "step 5: skipped, checkpoint " in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"checkpoints/5 cannot be read: params/manifest.ocdbt has changed"):
        checkpoints.evaluate(str(workdir), "3,5", asked())


def test_the_best_one(workdir, reports, capsys):
    checkpoints.evaluate(str(workdir), "best", asked())
    assert [step for _, step in reports] == [5]
    assert "best: step 5, validation/retrieval/i2t_R@1 12.5" in capsys.readouterr().out
    shutil.rmtree(workdir / "checkpoints" / "5")
    with pytest.raises(CheckpointError, match=r"no readable checkpoint of step 5 .*found \[3, 8\]"):
        checkpoints.evaluate(str(workdir), "best", asked())


@pytest.mark.parametrize("steps", ["", "last", "3,", "3;5", "-3", "all,3"])
def test_steps_that_are_none(workdir, steps):
    with pytest.raises(ConfigError, match=r"--step=.*: must be a step, steps with commas .*all or best; there are \[3, 5, 8\]"):
        checkpoints.evaluate(str(workdir), steps, asked())


def test_steps_that_are_not_there(workdir, tmp_path):
    with pytest.raises(CheckpointError, match="no readable checkpoint of step 4"):
        checkpoints.evaluate(str(workdir), "3,4", asked())
    with pytest.raises(CheckpointError, match="no checkpoint in "):
        checkpoints.evaluate(str(tmp_path / "none"), "all", asked())
    with pytest.raises(ConfigError, match="audit averages over checkpoints itself"):
        checkpoints.evaluate(str(workdir), "all", asked(("audit",)))


def test_a_run_without_a_best_says_so(tmp_path):
    state = build(CONFIG, tiny.VOCABULARY, tiny.one_device()).init(0)
    with Checkpoints(tmp_path) as saved:
        saved.save(state, Position(step=1), (), CONFIG, {})
        saved.wait()
        with pytest.raises(ConfigError, match="--step=best: the run was not evaluated while it trained"):
            checkpoints.steps_of("best", saved)


def test_following_a_run(workdir, monkeypatch, reports, capsys):
    """Checkpoints come and go while nobody looks; the one that is saved just before the run ends is not missed."""
    folder, aside = workdir / "checkpoints", workdir / "aside"
    aside.mkdir()
    for step in (5, 8):
        (folder / str(step)).rename(aside / str(step))
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:  # one that is being written, and one that lost a file
            shutil.copytree(aside / "5", folder / "5.orbax-checkpoint-tmp")
            shutil.copytree(aside / "5", folder / "6")
            shutil.rmtree(folder / "6" / "params")
        elif len(waits) == 3:
            shutil.rmtree(folder / "3")
            (aside / "5").rename(folder / "5")
        elif len(waits) == 4:
            (aside / "8").rename(folder / "8")
            (workdir / "done").touch()

    monkeypatch.setattr(checkpoints.time, "sleep", sleep)
    checkpoints.follow(str(workdir), asked(), 0.5)
    assert waits == [0.5] * 4
    assert [step for _, step in reports] == [3, 5, 8]
    output = capsys.readouterr().out
    assert "step 6: skipped, checkpoint " in output
    assert output.count("waiting for the next checkpoint") == 3
    assert "3 checkpoints" in output


def test_a_checkpoint_that_is_pruned_while_it_is_read(workdir, monkeypatch, capsys):
    restore = Checkpoints.restore_params

    def pruned(self, abstract, step=None):
        if step == 5:
            shutil.rmtree(self.directory / "5")
        return restore(self, abstract, step)

    monkeypatch.setattr(Checkpoints, "restore_params", pruned)
    (workdir / "done").touch()
    checkpoints.follow(str(workdir), asked(), 0.5)
    output = capsys.readouterr().out
    assert "step 5: skipped, no readable checkpoint of step 5" in output
    assert "2 checkpoints" in output
