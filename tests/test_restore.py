import dataclasses
import json

import jax
import numpy as np
import pytest

from bacl_jax import data
from bacl_jax.config import CLAConfig, Config, ConfigError, DataConfig, ModelConfig, ObjectiveConfig, TextConfig, TrainConfig, VisionConfig
from bacl_jax.data import synthetic
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.eval.restore import restore
from bacl_jax.mesh import make_mesh
from bacl_jax.train.checkpoint import CheckpointError, Checkpoints, Position, claim_workdir
from bacl_jax.train.step import build

CONFIG = Config(
    data=DataConfig(image_size=16),
    model=ModelConfig(embed_dim=8, image=VisionConfig(width=8, depth=1, heads=2), text=TextConfig(width=8, depth=1, heads=2)),
    objective=ObjectiveConfig(bank_size=16, cla=CLAConfig(enabled=True, width=8, heads=2)),
    train=TrainConfig(batch_size=16),
)


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setattr(data, "load", synthetic.load)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with checkpoints of steps 3 and 7, its tokenizer, and the parameters by step."""
    workdir = tmp_path_factory.mktemp("run")
    tokenizer = Tokenizer.train(synthetic.load(CONFIG.data).captions, CONFIG.data)
    tokenizer.save(workdir / "tokenizer.json")
    stored = json.loads((workdir / "tokenizer.json").read_text())
    state = build(CONFIG, tokenizer.vocab_size, make_mesh(CONFIG.mesh)).init(0)
    states = {step: dataclasses.replace(state, params=jax.tree.map(lambda x, step=step: x + step, state.params)) for step in (3, 7)}
    claim_workdir(workdir, CONFIG)
    with Checkpoints(workdir) as checkpoints:
        for step, each in states.items():
            checkpoints.save(each, Position(step=step), (), CONFIG, stored)
        checkpoints.wait()
    return workdir, tokenizer, {step: each.params for step, each in states.items()}


@pytest.mark.parametrize(("asked", "step"), [(None, 7), (3, 3), (7, 7)])
def test_what_was_written_comes_back(run, asked, step):
    workdir, tokenizer, params = run
    found = restore(workdir, asked)
    assert found.step == step
    assert found.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, found.params, params[step])
    np.testing.assert_array_equal(found.tokenizer.encode(["small red circle left"])[0], tokenizer.encode(["small red circle left"])[0])
    assert found.dataset.name == "synthetic"


def test_changeable_fields_may_differ_and_no_others(run):
    batch = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, batch_size=8))
    assert restore(run[0], config=batch).config.eval.batch_size == 8
    with pytest.raises(ConfigError, match=r"config\.seed was 0, is now 1"):
        restore(run[0], config=dataclasses.replace(CONFIG, seed=1))


def test_what_is_not_there_is_named(run, tmp_path_factory):
    with pytest.raises(CheckpointError, match=r"of step 5 .* found \[3, 7\]"):
        restore(run[0], 5)
    with pytest.raises(ConfigError, match="is no workdir of a run"):
        restore(tmp_path_factory.mktemp("empty"))
