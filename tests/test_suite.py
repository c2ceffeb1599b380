import json

import numpy as np
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, dataset

from bacl_jax.config import ConfigError
from bacl_jax.eval import suite, tasks

DATA = dataset([0, 1, 2], total=4, half_true={0: [(1, 0, "hair")]})
PARAMS = {"z": np.eye(4, dtype=np.float32)[:3], "w": np.eye(4, dtype=np.float32)}


def run(tasks, **options):
    return suite.evaluate(Trainer(), PARAMS, DATA, Tokenizer(), CONFIG, tasks, "test", **options)


def test_results_come_by_task_and_metric():
    found = run(("retrieval", "halftrue"))
    assert list(found) == ["retrieval", "halftrue"]
    names = {f"{way}_{what}{suffix}" for way in ("i2t", "t2i") for what in ("R@1", "R@5", "R@10", "mAP") for suffix in ("", "_all")}
    assert names <= set(found["retrieval"])
    assert found["retrieval"]["i2t_R@1_all"] == found["halftrue"]["halftrue_beat_all"] == 100


def test_options_reach_their_task():
    assert "t2i_R@1_all" not in run(("retrieval",), options={"retrieval": {"all_images": False}})["retrieval"]
    with pytest.raises(ConfigError, match=r"unknown task: reitreval; allowed: retrieval, halftrue, localization"):
        run(("retrieval",), options={"reitreval": {}})


@pytest.mark.parametrize(("tasks", "named"), [(("retrieval", "halftrou"), "halftrou"), ((), "no task given")])
def test_unknown_tasks_are_refused_with_the_allowed_names(tasks, named):
    with pytest.raises(ConfigError, match=rf"{named}; allowed: retrieval, halftrue, localization"):
        run(tasks)


def test_files_have_the_fixed_form(tmp_path):
    paths = suite.write(tmp_path, 120, run(("retrieval", "halftrue")), config_sha256="ab", data="fake/test")
    assert paths == [tmp_path / "eval/120/retrieval.json", tmp_path / "eval/120/halftrue.json"]
    entry = json.loads(paths[1].read_text())
    assert list(entry) == ["task", "step", "config_sha256", "data", "metrics"]
    assert (entry["task"], entry["step"], entry["config_sha256"], entry["data"]) == ("halftrue", 120, "ab", "fake/test")
    assert entry["metrics"]["n"] == 1


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    (path,) = suite.write(tmp_path, 1, {"halftrue": {"n": 1}}, config_sha256="a", data="d")
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        suite.write(tmp_path, 1, {"halftrue": {"n": float("nan")}}, config_sha256="a", data="d")
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["halftrue.json"]
    suite.write(tmp_path, 1, {"halftrue": {"n": 2}}, config_sha256="a", data="d")
    assert json.loads(path.read_text())["metrics"] == {"n": 2}


def test_the_names_of_tasks_are_those_of_what_they_do():
    assert tuple(suite.TASKS) == tasks.ON_SPLITS
    assert tuple(sorted(suite.BENCHMARKS)) == tuple(sorted(tasks.ON_FILES))
