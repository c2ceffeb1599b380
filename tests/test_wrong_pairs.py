"""The study of wrong pairs: which runs, in which order, what is chosen by the trials, and the report made of kept rows."""

import json

import pandas as pd
import pytest

from bacl_jax.config import ConfigError
from benchmarks import wrong_pairs
from configs.studies import wrong_pairs as study
from launch import compare_points, points


def row(point, value):
    return dict(point.labels) | {"steps": 500, "step_ms": 100.0} | dict.fromkeys(study.METRICS, value)


@pytest.fixture
def tried(tmp_path):
    """The second of a form's trials is the best; of ramp and softplus, ramp."""
    trials = wrong_pairs.trials(tmp_path)
    score = {"gce": 60.0, "ramp": 50.0, "softplus": 40.0}
    return pd.DataFrame([row(one, score[one.labels["variant"]] + (one.labels["budget"] == "trial1")) for one in trials])


@pytest.fixture
def settings(tried):
    return wrong_pairs.chosen(tried)


def test_trials_are_on_validation_and_on_a_seed_of_their_own(tmp_path):
    trials = wrong_pairs.trials(tmp_path)
    assert {(one.overrides["eval.report"], one.overrides["seed"]) for one in trials} == {("validation", study.TUNING_SEED)}
    assert study.TUNING_SEED not in study.SEEDS
    assert len({one.name for one in trials}) == sum(map(len, study.TRIALS.values()))


def test_the_best_trial_of_each_form_is_reported_and_the_better_of_two_forms(settings):
    assert settings == {"InfoNCE": {}, "BACL": {}, "gce": study.TRIALS["gce"][1], "ramp": study.TRIALS["ramp"][1]}
    with pytest.raises(ConfigError, match="--phase=tune"):
        wrong_pairs.chosen(pd.DataFrame())


def test_every_variant_has_one_seed_at_each_share_before_any_has_two(tmp_path, settings):
    runs = wrong_pairs.runs(tmp_path, settings, study.SEEDS)
    cells = len(settings) * len(study.SHARES)
    assert [one.overrides["seed"] for one in runs] == [seed for seed in study.SEEDS for _ in range(cells)]
    assert len({one.name for one in runs}) == len(runs)
    assert {one.overrides["eval.report"] for one in runs} == {"test"}


def test_variants_differ_in_the_objective_alone(tmp_path, settings):
    first, *others = (points.acting_fields(points.config_of(one)) for one in wrong_pairs.runs(tmp_path, settings, (0,))[: len(settings)])
    for other in others:
        changed = {field for field in first | other if first.get(field) != other.get(field)}
        assert changed
        assert all(field.startswith(("objective.", "optim.policy_", "optim.cross_lr")) for field in changed), changed


def test_the_report_is_made_of_the_kept_rows_and_made_again_in_its_place(tmp_path, tried, settings):
    kept, page = tmp_path / "results", tmp_path / wrong_pairs.PAGE
    kept.mkdir()
    runs = [one for one in wrong_pairs.runs(tmp_path, settings, (0, 1)) if one.labels["variant"] != "ramp"]
    level = {"InfoNCE": 80.0, "BACL": 85.0, "gce": 90.0}
    rows = [row(one, level[one.labels["variant"]] - one.labels["share"] / 10 + one.labels["seed"]) for one in runs]
    pd.DataFrame(rows).to_parquet(kept / "wrong_pairs.parquet")
    tried.to_parquet(kept / "wrong_pairs_trials.parquet")
    page.write_text("before\n" + "old\n".join(compare_points.MARKS) + "after\n")
    wrong_pairs.report(kept)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| InfoNCE | 80.5 | 79.5 | 78.5 | 76.5 |" in text
    assert "| gce | 90.5 (+10.0 ± 0.0 *) | 89.5 (+10.0 ± 0.0 *) |" in text
    assert "| ramp | - | - | - | - |" in text
    assert json.dumps(study.TRIALS["gce"][1]) in text
    assert (kept / "wrong_pairs.png").stat().st_size > 0
    wrong_pairs.report(kept)
    assert page.read_text() == text
