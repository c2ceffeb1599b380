"""Sweeps: overrides, names, what is refused before anything runs, the table, the pictures, the best config, a script for Slurm."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import small_pairs

from bacl_jax.config import Config, ConfigError, flatten, from_config_dict
from configs import emoji_bacl
from launch import overrides, sweep_array, sweep_plots, sweeps
from launch.point_runs import FAILED, PRUNED, Ended, Log, left
from launch.points import Point, config_of
from launch.sweep_results import Results, write_best

ROOT = Path(__file__).parents[1]
BACL = "configs/emoji_bacl.py"
READY = sorted(path.stem for path in (ROOT / "configs" / "sweeps").glob("[!_]*.py"))


def sweep_of(text, tmp_path, metric="i2t_R@1", **fixed):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return sweeps.Sweep(sweeps.read(path), str(ROOT / BACL), fixed, metric)


def yielding(*points):
    return f"def sweep():\n    yield from {points!r}\n"


# overrides


def test_a_product_has_every_combination_and_the_last_field_changes_fastest():
    made = list(overrides.product({"a": (1, 2)}, overrides.zip({"b": (3, 4), "c": (5, 6)})))
    assert made == [{"a": a, "b": b, "c": c} for a in (1, 2) for b, c in ((3, 5), (4, 6))]
    assert list(overrides.product()) == [{}]


def test_a_chain_is_one_part_after_another():
    assert list(overrides.chain({"a": (1, 2)}, [{"b": 3}])) == [{"a": 1}, {"a": 2}, {"b": 3}]


def test_random_overrides_are_those_of_the_seed_and_differ():
    settings = {"lr": overrides.log_uniform(1e-4, 1e-1), "x": overrides.uniform(-1, 1), "k": (1, 2, 3)}
    made = list(overrides.random(settings, count=40, seed=3))
    assert made[:10] == list(overrides.random(settings, count=10, seed=3))
    assert made != list(overrides.random(settings, count=40, seed=4))
    assert all(1e-4 <= one["lr"] <= 1e-1 and -1 <= one["x"] <= 1 and one["k"] in (1, 2, 3) for one in made)
    assert sum(one["lr"] < 10**-2.5 for one in made) in range(10, 31)  # even in the logarithm
    assert len(list(overrides.random({"k": (1, 2, 3)}, count=3))) == 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: overrides.random({"k": (1, 2)}, count=3), "count = 3, but only 2 different"),
        (lambda: overrides.zip({"a": (1, 2), "b": (3,)}), "as many values"),
        (lambda: overrides.product({"a": (1,)}, {"a": (2,)}), "a is set by two"),
        (lambda: overrides.product({"a": "plain"}), "must be a tuple of the values"),
    ],
)
def test_overrides_that_cannot_be_made(make, said):
    with pytest.raises(ConfigError, match=said):
        list(make())


# names


def test_a_name_is_readable_and_does_not_depend_on_the_order():
    one = {"objective.bns.k": 8, "seed": 1, "objective.bns.alpha_late": -0.5}
    assert sweeps.name_of(one) == "bns.alpha_late=-0.5+bns.k=8+seed=1"
    assert sweeps.name_of(dict(reversed(one.items()))) == sweeps.name_of(one)


def test_names_of_two_parts_tell_all_fields_apart():
    short = [".".join(name.split(".")[-2:]) for name in flatten(Config())]
    assert len(short) == len(set(short))


def test_what_is_no_name_of_a_file_or_too_long_gets_a_digest():
    many = {name: value for name, value in flatten(Config()).items() if name.startswith("objective.bns.")}
    names = [sweeps.name_of(one) for one in (many, many | {"objective.bns.k": 9}, {"data.path": "a/b c"}, {"data.path": "a/b_c"})]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"[\w.=+-]+-[0-9a-f]{8}", name) and len(name) <= sweeps.LONGEST_NAME for name in names)


def test_a_value_is_named_as_its_field_reads_it(tmp_path):
    points = sweep_of(yielding({"optim.lr": 1}, {"optim.ema_decay": None, "optim.lr": 2.0}), tmp_path).points()
    assert [point.name for point in points] == ["optim.lr=1.0", "optim.ema_decay=None+optim.lr=2.0"]
    assert points[0].labels == {"optim.lr": 1.0}


# what is refused


def test_every_point_is_compared_on_validation_and_the_best_is_reported_as_its_config_says(tmp_path):
    sweep = sweep_of(yielding({"seed": 1}), tmp_path, **{"train.steps": 70})
    (point,) = sweep.points()
    assert (config_of(point).eval.report, config_of(point).eval.split, config_of(point).train.steps) == ("validation", "validation", 70)
    assert sweep.chosen(point) == dataclasses.replace(
        from_config_dict(emoji_bacl.get_config()), seed=1, train=dataclasses.replace(Config().train, steps=70)
    )


REFUSED = [
    (yielding(), "sweep() yields no point"),
    (yielding({"objective.bns.kk": 1}), "point 0: objective.bns.kk names no field: did you mean objective.bns.k?"),
    (yielding({"config.optim.lr": 1.0}), "did you mean optim.lr?"),
    (yielding({"seed": 1}, {"objective.bns": 1}), "point 1: objective.bns names no field"),
    (yielding({"objective.bns.k": 0}), "point 0: config.objective.bns.k = 0: must be an integer >= 1"),
    (yielding({"objective.bns.k": 99}), "config.objective.bns.pool = 16: must be >= objective.bns.k = 99"),
    (yielding({"seed": 1}, {"seed": 2}, {"seed": 1}), "points 0 (seed=1) and 2 (seed=1) train one and the same config"),
    (yielding({}, {"seed": 0}), "points 0 (unchanged) and 1 (seed=0)"),
    (yielding({"eval.report": "test"}), "eval.report must not be set"),
    (yielding({"eval.tasks": ("halftrue",), "train.keep_best": None}), "--metric=i2t_R@1 needs the task retrieval"),
    (yielding({"data.validation_captions": 0}), "data.validation_captions = 0: must be 1 or more"),
    (yielding({"train.steps": 9}), "train.steps is set on the command line, too"),
    (yielding(3), "3 is no override"),
    ("def sweep():\n    while True:\n        yield {'seed': 1}\n", "more than 10,000 points"),
    ("shown = 5\n" + yielding({"seed": 1}), "shown = 5: must be a tuple of names of numbers"),
    ("import sys\ndef sweep():\n    sys.exit(0)\n", ", line 3: sweep() fails: SystemExit: 0"),
    ("def sweeps():\n    pass\n", "must define sweep(), which yields overrides, or suggest(trial), which returns one; it has neither"),
    ("def sweep():\n    pass\ndef suggest(trial):\n    pass\n", "it has both"),
    ("def sweep():\n    yield {}\n    1 / 0\n", ", line 3: sweep() fails: ZeroDivisionError: division by zero"),
    ("def sweep():\n    return 3\n", "sweep() fails: TypeError"),
    ("def sweep(:\n", ", line 1: no sweep can be read from it: SyntaxError"),
    ("import none_such\n", ", line 1: no sweep can be read from it: ModuleNotFoundError"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_a_sweep_that_is_refused(text, said, tmp_path):
    with pytest.raises(ConfigError) as raised:
        sweep_of(text, tmp_path, **{"train.steps": 70}).points()
    assert said in str(raised.value)
    assert str(tmp_path / "mine.py") in str(raised.value)


def test_a_metric_that_no_run_has_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(ConfigError, match=r"--metric=i2t_R1: did you mean i2t_R@1\?"):
        sweep_of(yielding({"seed": 1}), tmp_path, metric="i2t_R1")
    with pytest.raises(ConfigError, match=r"did you mean configs/sweeps/curriculum.py\?"):
        sweeps.read(Path("configs/sweeps/curiculum.py"))


def sweep(*arguments, **options):
    command = [sys.executable, "-m", "launch.sweep", *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sweep=configs/sweeps/curriculum.py", "--config.optim.lrr=1"], "did you mean --config.optim.lr?"),
        (["--sweep={tmp}/none.py", "--workdir={tmp}/runs"], "none.py: no such file"),
        (["--sweep=configs/sweeps/ablation.py", "--workdir={tmp}/runs", "--workers=999"], "--workers=999: must be at most"),
        (["--sweep=configs/sweeps/ablation.py", "--workdir={tmp}/runs", "--point=12"], "--point=12: must be from 0 to 11"),
        (["--sweep=configs/sweeps/adaptive.py", "--workdir={tmp}/runs", "--point=1"], "leave out --point and --sbatch"),
        (
            ["--sweep=configs/sweeps/ablation.py", "--workdir={tmp}/runs", "--report", "--point=0"],
            "--point and --report: must not be given",
        ),
        (
            ["--sweep=configs/sweeps/ablation.py", "--workdir={tmp}/runs", "--sbatch", "/proc/x/y.sh"],
            "--sbatch=/proc/x/y.sh: cannot be written",
        ),
        (["--sweep=configs/sweeps/ablation.py", "--workdir={tmp}/runs", "--report"], "none of the 12 points has ended"),
    ],
)
def test_bad_use_is_one_line_and_exit_code_2_before_anything_runs(arguments, said, tmp_path):
    done = sweep(f"--config={BACL}", *(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (tmp_path / "runs").exists()


# the ready ones


@pytest.mark.parametrize("name", [name for name in READY if name != "adaptive"])
def test_a_ready_sweep_names_fields_and_makes_valid_configs(name):
    file = sweeps.read(ROOT / "configs" / "sweeps" / f"{name}.py")
    points = sweeps.Sweep(file, str(ROOT / BACL), {}, "i2t_R@1").points()
    assert len({point.name for point in points}) == len(points) > 1
    (said,) = re.findall(r"(\d+) points", file.path.read_text())
    assert int(said) == len(points)


def test_every_ready_sweep_is_described():
    described = set(re.findall(r"^\| `configs/sweeps/(\w+)\.py` \|", (ROOT / "docs" / "sweeps.md").read_text(), re.M))
    assert described == set(READY)


# what a run leaves


def left_by_train(folder, sweep, step_metrics=(), status="done", **metrics):
    """The files of points as launch.train leaves them, each with the next values."""
    points = sweep.points()
    for number, point in enumerate(points):
        workdir = folder / point.name
        steps = config_of(point).train.steps
        (workdir / "eval" / str(steps)).mkdir(parents=True)
        values = {name: values[number] for name, values in metrics.items()}
        (workdir / "eval" / str(steps) / "retrieval.json").write_text(json.dumps({"metrics": values | {"n": 4}}))
        lines = [{"step": steps // 2, "wall_seconds": 1.0, "loss": 3.0, "validation/retrieval/i2t_R@1": 9.0}]
        lines += [{"step": steps, "wall_seconds": 2.0, "loss": 2.0, "validation/retrieval/i2t_R@1": 8.0}]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (workdir / "done").touch()
    return points


def ended(points, folder):
    return [left(point, folder) for point in points]


def test_a_log_is_read_as_it_grows_and_anew_where_it_was_cut_back(tmp_path):
    path, log = tmp_path / "metrics.jsonl", Log(tmp_path / "metrics.jsonl")
    assert log.new() == []
    with path.open("a") as file:
        file.write('{"step": 1}\n{"step"')
        file.flush()
        assert log.new() == [{"step": 1}]
        assert log.new() == []
        file.write(": 2}\n")
    assert log.new() == [{"step": 2}]
    (tmp_path / "cut").write_text('{"step": 1}\n')
    (tmp_path / "cut").replace(path)
    assert log.new() == [{"step": 1}]


def test_the_best_is_the_highest_mean_over_seeds_and_the_table_has_a_row_for_each_point(tmp_path):
    sweep = sweep_of(
        "from launch.overrides import product\ndef sweep():\n    return product({'optim.lr': (0.5, 0.25, 1.0), 'seed': (0, 1)})", tmp_path
    )
    points = left_by_train(tmp_path, sweep, **{"i2t_R@1": [50.0, 51.0, 90.0, 10.0, 40.0, 40.0], "i2t_R@5": [1.0] * 6})
    (tmp_path / points[4].name / "done").unlink()
    (tmp_path / points[4].name / PRUNED).touch()
    (tmp_path / points[5].name / "done").unlink()
    (tmp_path / points[5].name / FAILED).write_text("no memory\n")
    results = Results(tmp_path, "i2t_R@1")
    for one in ended(points, tmp_path):
        results.add(one)
    best = results.best()
    assert (best.names, best.value) == ((points[0].name, points[1].name), 50.5)
    assert str(best) == "50.50 ± 0.71 over 2 seeds"
    table = pd.read_parquet(tmp_path / "sweep.parquet").set_index(["optim.lr", "seed"])
    assert table.status.to_dict() == {
        (0.25, 0): "done",
        (0.25, 1): "done",
        (0.5, 0): "done",
        (0.5, 1): "done",
        (1.0, 0): "pruned",
        (1.0, 1): "failed",
    }
    assert table["i2t_R@1"].to_dict()[0.25, 0] == 90.0
    assert table["i2t_R@1"].to_dict()[1.0, 0] == 8.0  # the last evaluation
    assert table.loc[(1.0, 1), "reason"] == "no memory"
    assert set(table.loss) == {2.0}
    assert table.loc[(0.5, 0), "workdir"] == str(tmp_path / points[0].name)

    paths = sweep_plots.write(results.rows(), results.fields(), ["i2t_R@1", "loss", "not_there"], tmp_path)
    assert [path.name for path in paths] == ["parallel.png", "marginal.png"]
    assert all(path.stat().st_size > 10_000 for path in paths)

    written = write_best(tmp_path / "best.py", sweep.chosen(points[0]), "best")
    assert config_of(Point(str(written), {}, {}, "")) == sweep.chosen(points[0])


def test_a_finished_point_without_the_metric_ends_the_sweep(tmp_path):
    sweep = sweep_of(yielding({"seed": 1}), tmp_path)
    (point,) = left_by_train(tmp_path, sweep, **{"i2t_R@5": [1.0]})
    with pytest.raises(ConfigError, match=r"--metric=i2t_R@1: .*seed=1 is finished and has none; it has i2t_R@5"):
        Results(tmp_path, "i2t_R@1").add(left(point, tmp_path))


def test_values_of_several_kinds_and_fields_that_only_some_points_have(tmp_path):
    sweep = sweep_of(yielding({"data.vendors": ("Goog",)}, {"optim.ema_decay": None}, {"optim.ema_decay": 0.5}), tmp_path)
    points = left_by_train(tmp_path, sweep, **{"i2t_R@1": [1.0, 2.0, 3.0]})
    results = Results(tmp_path, "i2t_R@1")
    for one in ended(points, tmp_path):
        results.add(one)
    table = pd.read_parquet(tmp_path / "sweep.parquet")
    assert len(table) == 3
    assert sweep_plots.write(results.rows(), results.fields(), ["i2t_R@1"], tmp_path)


def test_best_has_a_mixture_and_texts_as_they_are(tmp_path):
    config = from_config_dict(
        {"data": {"kind": "mixture", "sources": ({"kind": "emoji", "weight": 2.0}, {"kind": "manifest", "path": "it's\nhere"})}}
    )
    folder = tmp_path / 'back\\user """'
    folder.mkdir()
    written = write_best(folder / "best.py", config, "a mixture")
    assert config_of(Point(str(written), {}, {}, "")) == config


def test_a_sweep_is_refused_before_jax_is_imported(tmp_path):
    (tmp_path / "mine.py").write_text(yielding({"sed": 1}))
    code = """
import sys
from launch import command, sweep
def main():
    try:
        sweep.main()
    finally:
        print(*{"jax", "pandas", "matplotlib"} & sys.modules.keys())
command.run(main, sweep.__doc__)
"""
    arguments = [f"--config={BACL}", f"--sweep={tmp_path}/mine.py", f"--workdir={tmp_path}/runs"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "\n"), done.stderr
    assert "sed names no field: did you mean seed?" in done.stderr


@pytest.mark.parametrize("form", ["--sbatch={}/x.sh", "--sbatch {}/x.sh"])
def test_the_script_for_slurm_runs_the_sweep_point_by_point(form, tmp_path):
    pwned = f"--config.watch.project=a\ntouch {tmp_path}/pwned; exit #"
    arguments = ["--config=c.py", "--sweep=my sweep.py", "--workdir=runs/x", pwned, *form.format(tmp_path).split()]
    folder = tmp_path / 'ar"r %j'
    text = sweep_array.write(tmp_path / "x.sh", 12, folder, arguments).read_text()
    assert f"#SBATCH --output='{tmp_path}/ar\"r %%j/array_%a.txt'\n" in text
    assert "#SBATCH --array=0-11\n" in text
    assert "--sbatch" not in text.split("set -euo")[1]
    subprocess.run(["bash", "-n", tmp_path / "x.sh"], check=True)
    shown = subprocess.run(["bash", tmp_path / "x.sh"], env={"SLURM_ARRAY_TASK_ID": "3"}, capture_output=True, text=True, check=False)
    assert not (tmp_path / "pwned").exists()
    assert "my sweep.py: no such file" in shown.stderr or "c.py: no such file" in shown.stderr


# really run


def test_points_run_one_that_fails_is_tried_twice_and_the_best_one_trains(tmp_path):
    """Two points on a manifest of few rows, one of which names a file that is not there; then the same command again."""
    pairs = small_pairs.write(tmp_path / "data")
    (tmp_path / "mine.py").write_text(yielding({"data.path": str(pairs)}, {"data.path": str(tmp_path / "none.csv")}))
    arguments = (*small_pairs.SETTINGS, f"--sweep={tmp_path}/mine.py", f"--workdir={tmp_path}/runs", "--workers=2")
    done = sweep(*arguments)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "runs" / "sweep.parquet").set_index("data.path")
    assert table.status.to_dict() == {str(pairs): "done", str(tmp_path / "none.csv"): "failed"}
    assert "none.csv" in table.reason[str(tmp_path / "none.csv")]
    assert 0 <= table["i2t_R@1"][str(pairs)] <= 100
    failed = Path(table.workdir[str(tmp_path / "none.csv")])
    assert (failed / "output.txt").read_text().count("error: ") == 2
    result = json.loads(next((Path(table.workdir[str(pairs)]) / "eval").rglob("retrieval.json")).read_text())
    assert result["data"] == "manifest/validation"
    best = config_of(Point(str(tmp_path / "runs" / "best.py"), {}, {}, ""))
    assert (best.data.path, best.eval.report) == (str(pairs), "test")
    assert "i2t_R@1" in done.stdout

    (tmp_path / "runs" / "sweep.parquet").unlink()
    again = sweep(*arguments, "--report")
    assert again.returncode == 0, again.stderr
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "runs" / "sweep.parquet").set_index("data.path"), table)


def test_a_point_that_was_left_is_told_by_its_folder(tmp_path):
    point = sweep_of(yielding({"seed": 1}), tmp_path).points()[0]
    assert left(point, tmp_path) is None
    (tmp_path / point.name).mkdir()
    (tmp_path / point.name / FAILED).write_text("why\n")
    assert left(point, tmp_path) == Ended(point, "failed", ran=False, reason="why")
