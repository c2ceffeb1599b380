"""A search by Optuna: what it asks for, what it is told, that it goes on after a kill, that it ends a run early."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
import small_pairs

from bacl_jax.config import ConfigError
from launch import sweeps
from launch.adaptive import Study
from launch.point_runs import PRUNED, Ended

ROOT = Path(__file__).parents[2]
FILE = """
import optuna

def suggest(trial):
    return {"optim.lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True), "seed": trial.suggest_int("seed", 0, 9)}

def pruner():
    return optuna.pruners.ThresholdPruner(lower=50.0)
"""


def study(tmp_path, trials=4, text=FILE):
    (tmp_path / "mine.py").write_text(text)
    sweep = sweeps.Sweep(sweeps.read(tmp_path / "mine.py"), str(ROOT / "configs" / "emoji_clip.py"), {}, "i2t_R@1")
    return Study(sweep, tmp_path, trials)


def stored(tmp_path):
    return optuna.load_study(storage=f"sqlite:///{tmp_path}/optuna.db", study_name="sweep").trials


def test_a_point_is_pruned_by_what_its_log_says(tmp_path):
    good, bad = (next(plan) for plan in [study(tmp_path).plan()] for _ in range(2))
    name = "validation/retrieval/i2t_R@1"
    assert not good.watch([])
    assert not good.watch([{"step": 1, "loss": 3.0}, {"step": 2, name: 60.0}])
    assert not good.watch([{"step": 2, name: 60.0}])  # the log was read anew
    assert not bad.watch([{"step": 2, name: 55.0}])
    assert bad.watch([{"step": 4, name: 40.0}])
    bad.told(Ended(bad.point, "pruned"))
    assert stored(tmp_path)[1].state == optuna.trial.TrialState.PRUNED
    assert stored(tmp_path)[1].intermediate_values == {2: 55.0, 4: 40.0}


def test_what_was_cut_off_is_asked_for_again_and_what_has_ended_is_not(tmp_path):
    planned = [next(plan) for plan in [study(tmp_path).plan()] for _ in range(3)]
    (tmp_path / planned[1].point.name).mkdir()
    (tmp_path / planned[1].point.name / PRUNED).touch()
    planned[1].told(Ended(planned[1].point, "pruned"))
    planned[2].told(Ended(planned[2].point, "stopped"))
    again = [one.point for one in study(tmp_path).plan()]
    assert [point.name for point in again[:3]] == [planned[number].point.name for number in (1, 0, 2)]
    assert len({point.name for point in again}) == 4  # the fourth is new
    assert again[1] == planned[0].point


def test_a_point_that_is_asked_for_twice_runs_once(tmp_path):
    text = "def suggest(trial):\n    return {'seed': trial.suggest_categorical('seed', (3,))}\n"
    (planned,) = study(tmp_path, text=text).plan()
    planned.told(Ended(planned.point, "pruned"))
    assert [trial.state.name for trial in stored(tmp_path)] == ["PRUNED"] * 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def suggest(trial):\n    return {'objective.bns.kk': 1}\n", "objective.bns.kk names no field"),
        ("def suggest(trial):\n    return trial.suggest_flaot('lr', 0, 1)\n", ", line 2: suggest.. fails: AttributeError"),
        ("def suggest(trial):\n    return {'seed': 1}\ndef pruner():\n    1 / 0\n", ", line 4: pruner.. fails: ZeroDivisionError"),
    ],
)
def test_a_search_that_is_refused(text, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        study(tmp_path, text=text)
    assert not (tmp_path / "optuna.db").exists()


def test_the_ready_search_makes_valid_configs(tmp_path):
    file = sweeps.read(ROOT / "configs" / "sweeps" / "adaptive.py")
    sweep = sweeps.Sweep(file, str(ROOT / "configs" / "emoji_bacl.py"), {}, "i2t_R@1")
    names = {planned.point.name for planned in Study(sweep, tmp_path, 12).plan()}
    assert len(names) == 12


def test_a_search_is_killed_goes_on_and_prunes(tmp_path):
    """Every evaluation is below the pruner's threshold. Points of even seeds are evaluated at their end alone: none is pruned."""
    pairs, folder = small_pairs.write(tmp_path / "data"), tmp_path / "runs"
    (tmp_path / "mine.py").write_text(
        "import optuna\n"
        "def suggest(trial):\n"
        "    seed = trial.suggest_int('seed', 0, 99)\n"
        "    return {'seed': seed, 'train.eval_every': (0, 2)[seed % 2]}\n"
        "def pruner():\n"
        "    return optuna.pruners.ThresholdPruner(lower=101.0)\n"
        "def sampler(seed):\n"
        "    return optuna.samplers.RandomSampler(seed=seed)\n"  # of the seed 0 the first point is even, the second odd
    )
    steps = ["--config.train.steps=400", "--config.train.save_every=50"]
    settings = [one for one in small_pairs.SETTINGS if not one.startswith(("--config.train.steps=", "--config.train.eval_every="))]
    arguments = [*settings, *steps, f"--config.data.path={pairs}", f"--sweep={tmp_path}/mine.py", f"--workdir={folder}"]
    command = [sys.executable, "-m", "launch.sweep", *arguments, "--trials=3", "--workers=1"]
    options = {"cwd": ROOT, "env": os.environ | {"JAX_PLATFORMS": "cpu"}}
    first = subprocess.Popen(command, **options)
    end = time.monotonic() + 600
    while not list(folder.glob("*/done")) or len(list(folder.glob("seed=*"))) < 2:
        assert first.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = subprocess.run(command, **options, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(folder / "sweep.parquet")
    assert len(table) == 3
    assert set(table.status) == {"done", "pruned"}
    pruned = table[table.status == "pruned"]
    assert set(pruned["train.eval_every"]) == {2}
    assert set(table[table.status == "done"]["train.eval_every"]) == {0}
    assert (pruned.steps < 400).all()
    assert pruned["i2t_R@1"].notna().all()
    states = sorted(trial.state.name for trial in stored(folder) if trial.state.name != "FAIL")  # those that the kill has cut off
    assert states == sorted({"done": "COMPLETE", "pruned": "PRUNED"}[status] for status in table.status)
