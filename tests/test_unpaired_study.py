"""The study of rows without a partner: its copies of the emoji pairs, and the table of its kept results."""

import collections
import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import unpaired, unpaired_copy
from configs.studies import unpaired as study
from launch import points


def test_copies_keep_some_pairs_and_take_the_others_apart():
    rows = [(f"{i}.png", f"caption {i}", "train" if i < 40 else "test", "") for i in range(50)]
    files = unpaired_copy.lines(rows, 0.25, np.random.default_rng(0))
    assert sorted(files["full"]) == sorted(rows)
    kept = [row for row in files["paired"] if row[2] == "train"]
    assert len(kept) == 10
    assert set(kept) < set(rows)
    singles = [row for row in files["unpaired"] if row[2] == "train" and row not in kept]
    pictures, captions = ([row for row in singles if row[place]] for place in (0, 1))
    assert len(pictures) == len(captions) == 30
    assert {(image, truth) for image, _, _, truth in pictures} == {row[:2] for row in rows[:40]} - {row[:2] for row in kept}
    assert {caption for _, caption, _, _ in captions} == {truth for *_, truth in pictures}
    assert all(image == truth == "" for image, _, _, truth in captions)
    for listed in files.values():
        assert [row for row in listed if row[2] == "test"] == rows[40:]


def test_runs_differ_in_their_rows_alone(tmp_path):
    every = [unpaired.point(variant, 3, tmp_path) for variant in study.VARIANTS]
    assert len({one.name for one in every}) == len(every)
    for one in every:
        config = points.config_of(one)
        assert (config.seed, config.train.steps, config.train.save_every, config.train.eval_every) == (3, study.STEPS, study.STEPS, 0)
        assert config.objective.kind == "infonce"
        assert config.data.path.endswith(study.VARIANTS[one.labels["variant"]][0].format(seed=3))


def test_detection_is_the_mean_over_the_last_part(tmp_path):
    row = {"variant": study.WHILE_TRAINING, "seed": 0}
    workdir = tmp_path / unpaired.name_of(**row)
    workdir.mkdir()
    lines = [{"progress": p, "loss": 1.0, "unpaired_precision": p} for p in (0.1, 0.5, 0.85, 0.95)]
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert unpaired.detection(row, tmp_path) == {"unpaired_precision": pytest.approx(90.0)}
    (workdir / "metrics.jsonl").write_text(json.dumps({"progress": 0.9, "loss": 1.0}))
    assert unpaired.detection(row, tmp_path) == {}


def test_found_captions_are_counted(tmp_path):
    (tmp_path / "pairs").mkdir()
    lines = ["image,caption,truth,confidence", "0.png,a,,", "1.png,b,b,0.9", "2.png,b,c,0.8", "3.png,d,d,0.7", "4.png,e,a,0.6"]
    (tmp_path / "pairs" / "found-2.csv").write_text("\n".join(lines))
    told = unpaired.detection({"variant": study.METHOD, "seed": 2}, tmp_path)
    assert told == pytest.approx({"unpaired_accepted": 12.5, "unpaired_precision": 50.0, "unpaired_recall": 6.25})


def test_the_table_is_of_the_kept_rows():
    level = dict(zip(study.VARIANTS, (50.0, 60.0, 51.0, 90.0, 45.0), strict=True))
    rows = [
        {"variant": variant, "seed": seed, "holdout": "compositional", "budget": "steps"} | dict.fromkeys(study.METRICS, value + seed)
        for variant, value in level.items()
        for seed in range(3)
    ]
    for row in rows:
        row["unpaired_precision"] = 31.0 if row["variant"] == study.METHOD else float("nan")
    shown = unpaired.table(pd.DataFrame(rows))
    assert f"| i2t_R@1 | {study.BASELINE} | 51.0 ± 1.0 | - | - | 3 |" in shown
    assert f"| i2t_R@1 | {study.METHOD} | 61.0 ± 1.0 | +10.0 ± 0.0 * | 25 % | 3 |" in shown
    assert "precision 31 %" in shown
    metrics = collections.Counter(line.split("|")[1].strip() for line in shown.splitlines() if "| i2t" in line)
    assert metrics["i2t_R@1"] == len(study.VARIANTS)
