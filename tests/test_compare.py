"""The comparison: which runs it consists of, what is kept of them, the page made of it."""

import json

import numpy as np
import pandas as pd
import pytest
from absl import flags

from bacl_jax.config import Config, from_config_dict
from configs.studies import emoji as study
from launch import compare, compare_points, point_runs, points, results_page


def finished(**more):
    rows = []
    for holdout in study.HOLDOUTS:
        for variant, budget, ms in (
            (study.BASELINE, "steps", 100),
            (study.BASELINE, "time", 100),
            (study.METHOD, "steps", 115),
            ("bns_a", "steps", 108),
        ):
            for seed in study.ABLATION_SEEDS:
                values = {
                    "i2t_R@1_all": 50 + seed + (5 if variant != study.BASELINE else 0),
                    "halftrue_beat_all": 70 + (seed if budget == "steps" else 0),
                }
                rows.append(
                    {"holdout": holdout, "variant": variant, "budget": budget, "seed": seed, "steps": 500, "step_ms": ms, "settings": "{}"}
                    | values
                )
    return pd.DataFrame(rows).assign(**more)


def test_both_sides_get_as_many_trials_on_seeds_that_are_not_reported_and_never_see_the_test():
    sides = [compare_points.trials(side, search, {}) for side, search in ((study.BASELINE, study.recipes), (study.METHOD, study.methods))]
    assert len(sides[0]) == len(sides[1]) == study.TUNING_TRIALS * len(study.TUNING_SEEDS)
    assert not set(study.TUNING_SEEDS) & set(study.SEEDS)
    for one in (*sides[0], *sides[1]):
        assert one.overrides["eval.report"] == "validation"
        assert one.overrides.get("eval.split", "validation") == "validation"


def test_the_methods_trials_stand_on_the_baselines_best_recipe():
    trials = compare_points.trials(study.METHOD, study.methods, {"optim.lr": 0.5})
    assert {one.overrides["optim.lr"] for one in trials} == {0.5}
    kept = pd.DataFrame([dict(t.labels) | {"i2t_R@1_all": i, "halftrue_beat_all": -0.5 * i} for i, t in enumerate(trials)])
    assert compare_points.best_trial(kept, trials) == json.loads(trials[-1].labels["settings"])


def test_runs_are_paired_and_have_folders_of_their_own():
    stages = [compare_points.main_runs, compare_points.ablations, compare_points.vendor]
    found = [one for stage in stages for one in stage(finished())]
    assert len({one.name for one in found}) == len(found)
    main = [one for one in compare_points.main_runs(finished()) if one.labels["budget"] == "steps"]
    assert {one.name for one in compare_points.timing_pairs(finished())} <= {one.name for one in main}
    seeds = {v: [p.overrides["seed"] for p in main if p.labels["variant"] == v] for v in (study.BASELINE, study.METHOD)}
    assert seeds[study.BASELINE] == seeds[study.METHOD] == list(study.SEEDS)


def test_equal_wall_clock_is_steps_times_the_measured_ratio():
    table = finished()
    only_steps = table[table.budget == "steps"]
    longer = [one for one in compare_points.main_runs(only_steps) if one.labels["budget"] == "time"]
    assert {one.overrides["train.steps"] for one in longer} == {int(np.ceil(study.STEPS * 1.15))}
    assert [one.labels["seed"] for one in longer] == list(study.SEEDS)


def test_kept_rows_are_replaced_by_newer_ones(tmp_path):
    path = tmp_path / "runs.parquet"
    compare_points.keep(finished(), path)
    compare_points.keep(finished().head(3).assign(steps=7), path)
    table = compare_points.read(path)
    assert len(table) == len(finished())
    assert (table.steps == 7).sum() == 3
    assert not list(tmp_path.glob("*.tmp"))


def test_a_point_counts_when_its_run_said_that_it_is_done(tmp_path):
    point = points.Point("configs/emoji_clip.py", {"train.steps": 4, "optim.warmup_steps": 2}, {"seed": 0}, "one")
    (tmp_path / "eval" / "4").mkdir(parents=True)
    (tmp_path / "eval" / "4" / "retrieval.json").write_text(json.dumps({"metrics": {"i2t_R@1": 50.0, "n": 8}}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "wall_seconds": 2.0 * s}) + "\n" for s in (2, 3, 4)))
    assert points.result(point, tmp_path) is None
    (tmp_path / "done").touch()
    row = {"seed": 0, "config": json.dumps(points.acting_fields(points.config_of(point))), "steps": 4, "step_ms": 2000.0, "i2t_R@1": 50.0}
    assert points.result(point, tmp_path) == row


def test_only_what_is_not_kept_or_has_another_config_runs(tmp_path, monkeypatch):
    chosen = compare_points.timing_pairs(finished())
    made_by = [json.dumps(points.acting_fields(points.config_of(one))) for one in chosen]
    rows = [{**one.labels, "config": text, "steps": 4, "step_ms": 1.0} for one, text in zip(chosen, made_by, strict=True)]
    path = tmp_path / "runs.parquet"
    compare_points.keep(pd.DataFrame([rows[0], rows[1] | {"config": "another"}, rows[2]]), path)
    asked = []
    monkeypatch.setattr(point_runs, "run", lambda missing, *args, **more: asked.extend(missing))
    flags.FLAGS([""])
    compare.run(chosen, path)
    assert asked == [chosen[1], chosen[3]]
    compare_points.keep(pd.DataFrame([rows[0] | {"config": None}]), path)  # a row from before configs were kept
    assert compare_points.missing(chosen[:1], compare_points.read(path)) == chosen[:1]


def test_a_kept_row_counts_for_the_settings_that_act():
    def row(**changes):
        return json.dumps(points.acting_fields(from_config_dict(changes)))

    bns = {"objective": {"bns": {"enabled": True}}}
    assert points.comes_from(row(), Config())
    assert points.comes_from(row(objective={"bns": {"k": 5}}), Config())  # of a part that is off
    assert not points.comes_from(row(objective={"bns": {"enabled": True, "k": 5}}), from_config_dict(bns))
    assert not points.comes_from(row(), from_config_dict(bns))
    assert not points.comes_from(row(seed=1), Config())
    older = json.loads(row())
    del older["optim.b1"]  # as if the field were new
    assert points.comes_from(json.dumps(older), Config())
    assert not points.comes_from(json.dumps(older), from_config_dict({"optim": {"b1": 0.5}}))
    assert not points.comes_from(json.dumps(older | {"optim.gone": 1}), Config())
    assert not points.comes_from("another", Config())


def test_the_page_shows_differences_with_intervals():
    page = results_page.render(finished(), finished().head(2))
    row = next(line for line in page.splitlines() if line.startswith("| i2t_R@1_all"))
    assert "+5.0 ± 0.0 * (n = 5)" in row
    assert "1.15 times" in page
    assert "| bns_a | 5 | 1.08 |" in page
    assert "make compare" in results_page.render(finished().head(0), pd.DataFrame())


@pytest.mark.parametrize("variant", study.VARIANTS)
def test_variants_name_fields_that_exist(variant):
    from bacl_jax.config import Config, flatten

    config, changes = study.VARIANTS[variant]
    assert set(changes) <= set(flatten(Config()))
    assert config.startswith("configs/")
