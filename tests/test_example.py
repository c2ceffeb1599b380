"""The table of launch.example."""

import dataclasses
import json
from typing import Any

import pytest
import tiny

from bacl_jax.config import ConfigError, from_config_dict
from bacl_jax.train.workdir import claim_workdir
from configs import stamps_audio_bacl
from launch import example_table

NO_DATA: Any = None  # of a run that is done, none are looked at


def test_the_methods_differ_in_bns_and_cla_alone():
    plain, full = example_table.methods(tiny.media("audio")).values()
    assert (plain.objective.bns.enabled, plain.objective.cla.enabled) == (False, False)
    assert (full.objective.bns.enabled, full.objective.cla.enabled) == (True, True)
    assert plain.data == full.data


def test_a_row_a_metric_with_mean_deviation_difference_and_chance(tmp_path):
    for step, value in ((1, 10.0), (20, 30.0)):
        folder = tmp_path / "eval" / str(step)
        folder.mkdir(parents=True)
        metrics = {"a2t_R@1": value, "a2t_R@1_chance": 2.0, "a2t_R@1_all": 5.0, "n": 7}
        (folder / "retrieval.json").write_text(json.dumps({"metrics": metrics}))
        (folder / "halftrue.json").write_text(json.dumps({"metrics": {"audio/halftrue_pairwise": 60.0, "halftrue_pairwise/number": 1.0}}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "wall_seconds": 3.0}\n{"step": 20, "wall_seconds": 9.0}\n')
    found = example_table.read(tmp_path)
    assert (found["a2t_R@1"], found["seconds"]) == (30.0, 9.0)
    rows = example_table.rows({"infonce": [found, found | {"a2t_R@1": 20.0}], "bacl": [found, found]})
    assert rows[1] == ("a2t_R@1", "25.0 ± 7.1", "30.0 ± 0.0", "+5.0 ± 7.1", "2.0")
    alone = example_table.rows({"infonce": [found], "bacl": [found | {"ael": 40.0}]})
    assert ("ael", "-", "40.0", "-", "") in alone
    assert [row[0] for row in rows] == ["audio/halftrue_pairwise", "a2t_R@1", "seconds"]


def test_a_run_that_was_done_with_another_config_is_refused(tmp_path):
    config = from_config_dict(stamps_audio_bacl.get_config())
    claim_workdir(tmp_path, config)
    (tmp_path / "done").touch()
    (tmp_path / "eval" / "1").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "wall_seconds": 3.0}\n')
    assert example_table.finished(config, tmp_path, NO_DATA) == {"seconds": 3.0}
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=config.train.steps + 1))
    with pytest.raises(ConfigError, match=rf"config.train.steps was {config.train.steps}, is now {config.train.steps + 1}\. Take another"):
        example_table.finished(longer, tmp_path, NO_DATA)
