"""The doors from end to end, as processes, on a small manifest."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bacl_jax.config import Config, from_config_dict, sha256

ROOT = Path(__file__).parents[1]
COLOURS = {"red": (200, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 200), "black": (0, 0, 0)}
SETTINGS = (
    "--config=configs/manifest.py",
    "--config.objective.bns.enabled=False",
    "--config.objective.cla.enabled=False",
    "--config.model.embed_dim=16",
    "--config.model.image.width=16",
    "--config.model.image.depth=1",
    "--config.model.text.width=16",
    "--config.model.text.depth=1",
    "--config.data.tokenizer=word",
    "--config.data.split_column=split",
    "--config.train.batch_size=8",
    "--config.train.log_every=1",
    "--config.train.eval_every=3",
    "--config.train.save_every=2",
    "--config.optim.warmup_steps=1",
)


def launch(door, *arguments):
    command = [sys.executable, "-m", f"launch.{door}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    lines = ["image,caption,split"]
    for name, colour in COLOURS.items():
        for edge in range(4, 24):
            pixels = np.full((32, 32, 3), 255, np.uint8)
            pixels[edge - 4 : edge + 4, 8:24] = colour
            Image.fromarray(pixels).save(folder / f"{name}{edge}.png")
            split = {4: "validation", 5: "test"}.get(edge % 6, "train")
            lines.append(f"{name}{edge}.png,{name} bar {edge},{split}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


@pytest.fixture(scope="module")
def finished(manifest, tmp_path_factory):
    """(workdir, output) of a run of 4 steps."""
    workdir = tmp_path_factory.mktemp("run")
    done = launch("train", *SETTINGS, "--config.train.steps=4", f"--workdir={workdir}", f"--config.data.path={manifest}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_it_promises(finished):
    workdir, output = finished
    assert {"config.json", "checkpoints", "metrics.jsonl", "tensorboard", "eval", "plots", "done"} <= {
        path.name for path in workdir.iterdir()
    }
    config = from_config_dict(json.loads((workdir / "config.json").read_text()))
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4]
    assert [line["step"] for line in lines(workdir) if "validation/retrieval/i2t_R@1" in line] == [3, 4]
    for task in ("retrieval", "halftrue"):
        result = json.loads((workdir / "eval" / "4" / f"{task}.json").read_text())
        assert result.keys() == {"task", "step", "config_sha256", "data", "metrics"}
        assert (result["task"], result["step"], result["data"], result["config_sha256"]) == (task, 4, "manifest/test", sha256(config))
    for part in ("step 4/4", "image to text", str(workdir / "plots" / "curves.png"), str(workdir / "eval" / "4" / "retrieval.json")):
        assert part in output


def test_the_same_command_goes_on_with_more_steps(finished, manifest):
    workdir, _ = finished
    done = launch("train", *SETTINGS, "--config.train.steps=6", f"--workdir={workdir}", f"--config.data.path={manifest}")
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4, 5, 6]
    assert (workdir / "eval" / "6" / "retrieval.json").is_file()

    refused = launch("train", *SETTINGS, "--config.optim.lr=0.5", f"--workdir={workdir}", f"--config.data.path={manifest}")
    assert refused.returncode == 2
    assert f"config.optim.lr was {Config().optim.lr}, is now 0.5" in refused.stderr


def test_a_check_tells_where_the_run_goes_on_and_changes_nothing(finished, manifest):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    arguments = (*SETTINGS, "--config.train.steps=9", f"--workdir={workdir}", f"--config.data.path={manifest}")
    done = launch("train", *arguments, "--check")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.replace("│", " ").split())
    assert re.search(r"begins at step [46] of its checkpoint steps 9, of which [53] are left", said)
    for part in (
        "training 48 rows",
        "validation 16 pictures",
        "batch 8 pairs, 8 a device, in 1 part",
        "samples 72",
        "epochs 1.50",
        "FLOPs",
        "s a step, of which",
        "devices 1 cpu: data 1 x fsdp 1 x tensor 1",
        "every 2 steps and every 1 minutes; the newest 2 are kept, and the best",
        "evaluated retrieval, halftrue on validation, every 3 steps and at the end",
        "reported at the end retrieval, halftrue, localization on test",
    ):
        assert part in said
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_a_signal_during_the_report_leaves_with_the_code_of_a_preempted_run(finished, manifest):
    """The report of the door is replaced by one that gets SIGTERM."""
    workdir, _ = finished
    code = (
        "import os, signal; from launch import command, session, train;"
        "session.Run.report = lambda *arguments: (os.kill(os.getpid(), signal.SIGTERM), print('not left'));"
        "command.run(train.main, '')"
    )
    arguments = [*SETTINGS, "--config.train.steps=6", f"--workdir={workdir}", f"--config.data.path={manifest}", "--preempted_code=75"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 75, done.stderr
    assert done.stdout.endswith("preempted, resume with the same command\n")
    assert "not left" not in done.stdout
    assert not (workdir / "done").exists()


def test_a_checkpoint_is_evaluated_again_with_equal_numbers(finished):
    workdir, _ = finished
    path = workdir / "eval" / "4" / "retrieval.json"
    before = json.loads(path.read_text())
    path.unlink()
    done = launch("evaluate", f"--workdir={workdir}", "--step=4", "--tasks=retrieval")
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text())["metrics"] == pytest.approx(before["metrics"])
    assert str(path) in done.stdout

    done = launch("evaluate", f"--workdir={workdir}", "--step=4", "--tasks=retrieval", "--config.eval.split=validation")
    assert done.returncode == 0, done.stderr
    assert json.loads((path.parent / "validation" / path.name).read_text())["data"] == "manifest/validation"
    assert json.loads(path.read_text())["data"] == "manifest/test"


def test_an_audit_writes_lists_and_pictures(finished):
    workdir, _ = finished
    done = launch("evaluate", f"--workdir={workdir}", "--step=4", "--tasks=audit,halftrue", "--config.eval.audit.k=3")
    assert done.returncode == 0, done.stderr
    result = json.loads((workdir / "eval" / "4" / "audit.json").read_text())
    assert (result["task"], result["step"], result["data"]) == ("audit", 4, "manifest/train")
    assert (result["metrics"]["n"], result["metrics"]["n_unreadable"]) == (48, 0)
    assert result["metrics"]["n_checkpoints"] >= 1  # as many as the run has kept up to step 4
    folder = workdir / "eval" / "4" / "audit"
    assert {path.name for path in folder.glob("*.csv")} == {
        f"{name}.csv" for name in ("pairs", "duplicates", "false_negatives", "unreadable")
    }
    assert (folder / "pairs.png").is_file()
    assert len((folder / "pairs.csv").read_text().splitlines()) == 49
    for part in ("4, train pairs of", "likely wrong pairs", "half-true captions", str(folder / "pairs.csv")):
        assert part in done.stdout

    done = launch("evaluate", f"--workdir={workdir}", "--step=4", "--tasks=audit", "--config.eval.audit.split=test")
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "eval" / "4" / "test" / "audit.json").read_text())["metrics"]["n_images"] < 20


def test_benchmarks_in_their_published_files(finished, manifest, tmp_path):
    """Without the data that the run was trained on."""
    workdir, _ = finished
    line = {"id": 0, "image_0": "red4", "image_1": "blue4", "caption_0": "red bar", "caption_1": "blue bar", "collapsed_tag": "Object"}
    missing = line | {"id": 1, "image_0": "nowhere"}
    (tmp_path / "examples.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(missing)}\n")
    for name in COLOURS:
        (tmp_path / "colours" / name).mkdir(parents=True)
        (tmp_path / "colours" / name / "a.png").write_bytes((manifest.parent / f"{name}4.png").read_bytes())
    done = launch(
        "evaluate",
        f"--workdir={workdir}",
        "--step=4",
        "--tasks=winoground,classification,retrieval",
        f"--config.eval.retrieval.path={manifest}",
        "--config.data.path=elsewhere.csv",
        f"--config.eval.winoground.path={tmp_path}",
        f"--config.eval.winoground.images={manifest.parent}",
        f"--config.eval.classification.path={tmp_path / 'colours'}",
    )
    assert done.returncode == 0, done.stderr
    found = {task: json.loads((workdir / "eval" / "4" / f"{task}.json").read_text()) for task in ("winoground", "classification")}
    assert found["winoground"]["data"] == str(tmp_path)
    numbers = found["winoground"]["metrics"]
    assert (numbers["n"], numbers["n_entries"], numbers["left_out/missing"], numbers["group_score_chance"]) == (
        1,
        2,
        1,
        pytest.approx(50 / 3),
    )
    assert {"text_score", "image_score", "group_score", "text_score_blind"} <= numbers.keys()
    assert (found["classification"]["metrics"]["n"], found["classification"]["metrics"]["top5"]) == (4, 100)
    captioned = json.loads((workdir / "eval" / "4" / f"{manifest.stem}_test" / "retrieval.json").read_text())
    assert captioned["data"] == str(manifest)
    assert captioned["metrics"]["n"] == captioned["metrics"]["n_entries"] > 4
    listed = workdir / "eval" / "4" / "winoground" / "left_out.csv"
    assert "nowhere.png,missing" in listed.read_text()
    for part in ("winoground, 1 of 2 entries", "classification, 4 of 4 entries", "group score", str(listed), "texts: 100.0 % of"):
        assert part in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workdir={run}", "--tasks=aro"], "config.eval.aro.path = None: must name the benchmark's file or folder"),
        (["--workdir={run}", "--tasks=valse", "--config.eval.valse.path=none.json"], "none.json: cannot be read"),
        ([], "--workdir must be given"),
        (["--workdir=/nowhere"], "--workdir=/nowhere is no workdir of a run"),
        (["--workdir={run}", "--step=99"], "no readable checkpoint of step 99"),
        (["--workdir={run}", "--step=last"], "--step=last: must be a step, steps with commas between them, all or best; there are"),
        (["--workdir={run}", "--step=all", "--follow"], "--step=all: --follow evaluates every step"),
        (["--workdir={run}", "--tasks=vqa"], "vqa; allowed: retrieval, halftrue, localization, robustness, fusion, audit"),
        (["--workdir={run}", "--tasks=audit", "--config.eval.audit.steps=(1,)"], "eval.audit.steps: no checkpoint of step 1; there are"),
        (["--workdir={run}", "--tasks=audit", "--config.eval.audit.k=0"], "config.eval.audit.k"),
        (["--workdir={run}", "--config.optim.lr=0.5"], f"config.optim.lr was {Config().optim.lr}, is now 0.5"),
        (["--workdir={run}", "--config.data.path=none.csv"], "none.csv"),
    ],
)
def test_bad_use_of_evaluate_is_one_line_and_exit_code_2(finished, arguments, said):
    done = launch("evaluate", *(argument.format(run=finished[0]) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
