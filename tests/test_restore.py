import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from bacl_jax import data
from bacl_jax.config import Config, ConfigError, DataConfig, MeshConfig, TrainConfig
from bacl_jax.config_model import ModelConfig, TextConfig, VisionConfig
from bacl_jax.config_objective import CLAConfig, ObjectiveConfig
from bacl_jax.data import synthetic
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.errors import CheckpointError, DataError
from bacl_jax.eval import suite
from bacl_jax.eval.restore import restore
from bacl_jax.mesh import make_mesh
from bacl_jax.train.checkpoint import Checkpoints, Position
from bacl_jax.train.step import build
from bacl_jax.train.workdir import claim_workdir

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


def numbers(found):
    results = suite.evaluate(found.trainer, found.params, found.dataset, found.tokenizer, found.config, ("retrieval", "halftrue"), "test")
    return {f"{task}/{name}": value for task, metrics in results.items() for name, value in metrics.items()}


def test_nothing_but_parameters_and_tokenizer_is_read(run, tmp_path, monkeypatch):
    """Neither other items of the checkpoint, gone or damaged, nor the training data until they are asked for."""
    expected = numbers(restore(run[0], 7))
    workdir = shutil.copytree(run[0], tmp_path / "run")
    for path in list((workdir / "checkpoints" / "7").iterdir()):
        if path.name in ("opt_state", "counters"):
            shutil.rmtree(path)
        elif path.is_dir() and path.name not in ("params", "tokenizer"):
            for file in path.rglob("*"):
                if file.is_file():
                    file.write_bytes(b"damaged")
    assert not (workdir / "checkpoints" / "7" / "opt_state").exists()
    (workdir / "tokenizer.json").unlink()
    assert numbers(restore(workdir)) == expected

    def missing(config):
        raise DataError("not on this machine", kind="missing")

    monkeypatch.setattr(data, "load", missing)
    found = restore(workdir)
    assert found.trainer.encode_text(found.params, *found.tokenizer.encode(["small red circle left"])).pooled.shape == (1, 8)
    with pytest.raises(DataError, match="not on this machine"):
        _ = found.dataset


CUT = dataclasses.replace(CONFIG, mesh=MeshConfig(2, 2, 2, fsdp_floor=64))
ELSEWHERE = """
import json, sys
from bacl_jax import data
from bacl_jax.data import synthetic
from bacl_jax.eval import suite
from bacl_jax.eval.restore import restore
data.load = synthetic.load
found = restore(sys.argv[1])
assert found.trainer.mesh.size == 1
results = suite.evaluate(found.trainer, found.params, found.dataset, found.tokenizer, found.config, ("retrieval", "halftrue"), "test")
print(json.dumps({f"{task}/{name}": value for task, metrics in results.items() for name, value in metrics.items()}))
"""


def save(workdir, config, trainer, tokenizer):
    claim_workdir(workdir, config)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(trainer.init(0), Position(step=7), (), config, tokenizer.to_json())
        checkpoints.wait()


def test_a_run_on_eight_devices_is_evaluated_anywhere(run, tmp_path):
    """Parameters cut over (2, 2, 2), on the same mesh, on (8, 1, 1), and in a process with one device, which no flag tells of the mesh."""
    tokenizer = run[1]
    trainer = build(CUT, tokenizer.vocab_size, make_mesh(CUT.mesh))
    save(tmp_path, CUT, trainer, tokenizer)
    assert any("fsdp" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(trainer.init(0).params))
    same = restore(tmp_path)
    assert same.trainer.mesh.devices.shape == (2, 2, 2)
    assert any("tensor" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(same.params))
    whole = restore(tmp_path, config=dataclasses.replace(CUT, mesh=MeshConfig(8, 1, 1)))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(whole.params))
    jax.tree.map(np.testing.assert_array_equal, same.params, whole.params)
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    elsewhere = json.loads(done.stdout)
    assert numbers(same) == pytest.approx(elsewhere, abs=1e-4)
    assert numbers(whole) == pytest.approx(elsewhere, abs=1e-4)
    while_training = dataclasses.replace(same, params=trainer.eval_params(trainer.init(0)))
    assert numbers(while_training) == pytest.approx(elsewhere, abs=1e-4)
    with pytest.raises(ConfigError, match=r"mesh.fsdp 3 x mesh.tensor 1 = 3 does not divide the 8 devices"):
        restore(tmp_path, config=dataclasses.replace(CUT, mesh=MeshConfig(-1, 3, 1)))


def test_a_run_on_one_device_is_evaluated_on_eight(run, tmp_path):
    """Also where its batch does not divide over them."""
    config, tokenizer = dataclasses.replace(CONFIG, train=TrainConfig(batch_size=15)), run[1]
    trainer = build(config, tokenizer.vocab_size, tiny.one_device())
    save(tmp_path, config, trainer, tokenizer)
    plain = restore(tmp_path)
    assert plain.trainer.mesh.devices.shape == (8, 1, 1)
    cut = restore(tmp_path, config=dataclasses.replace(config, mesh=CUT.mesh))
    assert any("tensor" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(cut.params))
    jax.tree.map(np.testing.assert_array_equal, cut.params, trainer.init(0).params)
    assert numbers(cut) == pytest.approx(numbers(plain), abs=1e-4)
