"""The documents name commands, fields, files, functions, metrics and error kinds that exist, and the README's commands run."""

import ast
import csv
import functools
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from bacl_jax.config import Config, flatten, is_changeable
from bacl_jax.mesh import make_mesh
from bacl_jax.train.step import build
from launch.job import Machines

ROOT = Path(__file__).parents[1]
GENERATED = {"docs/results.md"}  # made by `make report`
DOCUMENTS = sorted(
    name for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")) if (name := str(path.relative_to(ROOT))) not in GENERATED
)
TOPS = ("bacl_jax/", "examples/", "launch/", "configs/", "tests/", "docs/", ".ci/")
SWITCHES = ("--again", "--check", "--dry_run", "--follow", "--report")
FILE = re.compile(r"[\w./-]+\.(py|md|toml|txt)")


@functools.cache
def text(name):
    return (ROOT / name).read_text()


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", text(name), re.DOTALL)


def commands(name):
    """The commands of a document's bash blocks that go through a door, as lists of words."""
    lines = "".join(blocks(name, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line.split(" || ")[0], comments=True) for line in lines if line.startswith("python -m launch.")]


def quoted(name):
    """What stands in backticks outside code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text(name), flags=re.DOTALL))


def between(name, marker):
    return re.search(rf"<!-- {marker} -->(.*?)<!-- /{marker} -->", text(name), re.DOTALL)[1]


def run(command, cwd=ROOT):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@functools.cache
def help_of(door):
    """What its --help begins with (test_configs.py asks one for it), without a process."""
    return ast.get_docstring(ast.parse(text(f"{door.replace('.', '/')}.py")))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_parse(name):
    fields = flatten(Config())
    for command in commands(name):
        assert re.search(r"launch\.\w+$", command[2]), command
        known = set(re.findall(r"--(\w+)", help_of(command[2])))
        for argument in (one for one in command[3:] if one != "--help"):
            flag, _, value = argument.partition("=")
            assert flag.startswith("--"), f"{name}: {argument}"
            assert value or flag in SWITCHES, f"{name}: {argument}"
            if flag.startswith("--config."):
                assert flag.removeprefix("--config.") in fields, f"{name}: {argument}"
            elif flag.startswith("--job."):
                assert flag.removeprefix("--job.") in flatten(Machines()), f"{name}: {argument}"
            else:
                assert flag.removeprefix("--") in known, f"{name}: {argument}"
            if flag in ("--config", "--job"):
                assert (ROOT / value).is_file(), f"{name}: {argument}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_fields_exist(name):
    """--config.x.y anywhere in a document, and `group.field` in backticks."""
    fields = flatten(Config())
    groups = {part for field in fields for part in field.split(".")[:-1]}
    named = set(re.findall(r"--config\.([\w.]*\w)", text(name)))
    dotted = {
        one for one in quoted(name) if re.fullmatch(r"[a-z]+(\.\w+)+", one) and one.split(".")[0] in groups and not FILE.fullmatch(one)
    }
    for one in named | dotted:
        assert any(field == one or field.endswith("." + one) for field in fields), f"{name}: {one}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_functions_exist(name):
    for one in quoted(name):
        path, _, function = one.partition(":")
        if not (path.startswith(TOPS) or FILE.fullmatch(path)) or path.startswith("runs/") or "*" in path or path in GENERATED:
            continue
        assert (ROOT / path).exists(), f"{name}: {one}"
        if function:
            found = {node.name for node in ast.walk(ast.parse(text(path))) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assert function in found, f"{name}: {one}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_make_targets_exist(name):
    for link in re.findall(r"\]\(([^)]+)\)", text(name)):
        target, _, heading = link.partition("#")
        if target.startswith("http"):
            continue
        path = os.path.normpath(os.path.join(os.path.dirname(name), target)) if target else name
        assert path in GENERATED or (ROOT / path).exists(), f"{name}: {link}"
        if heading:
            headings = {
                re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text(path), re.M)
            }
            assert heading in headings, f"{name}: {link}"
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    lines = "\n".join(blocks(name, "bash")).splitlines()
    for target in re.findall(r"^make ([\w-]+)$", "\n".join([*quoted(name), *lines]), re.M):
        assert target in targets, f"{name}: make {target}"


def test_the_layout_names_every_module():
    modules = {str(path.relative_to(ROOT)) for top in ("bacl_jax", "launch") for path in (ROOT / top).rglob("*.py")}
    wanted = {module for module in modules if not module.endswith("__init__.py")}
    named = re.findall(r"^\| `(\S+\.py)` \| \S", text("README.md").split("## Layout")[1], re.M)
    assert set(named) >= wanted, f"the README's layout lacks {sorted(wanted - set(named))}"
    assert len(named) == len(set(named))


def test_the_logged_metrics_are_those_of_a_step():
    config = tiny.config()
    trainer = build(config, tiny.VOCABULARY, make_mesh(config.mesh))
    _, metrics = jax.eval_shape(trainer.step, trainer.abstract_state(), tiny.batch())
    alone = tiny.unpaired()
    trainer, batch = build(alone, tiny.VOCABULARY, make_mesh(alone.mesh)), tiny.batch(paired=8)
    _, of_unpaired = jax.eval_shape(trainer.step, trainer.abstract_state(), batch)
    assert set(re.findall(r"^\| `(\w+)` ", between("docs/method.md", "metrics"), re.M)) == {*metrics, *of_unpaired}


def test_the_fields_that_a_resumed_run_may_change():
    assert set(re.findall(r"`([\w.]+)`", between("docs/internals.md", "changeable"))) == {f for f in flatten(Config()) if is_changeable(f)}


def test_every_kind_of_error_of_a_manifest_is_described():
    raised = set()
    for module in ("manifest", "records", "transforms"):
        source = text(f"bacl_jax/data/{module}.py")
        raised |= set(re.findall(r'kind="(\w+)"', source)) | set(re.findall(r'_Bad\(.*"(\w+)"\)', source))
    described = text("docs/data.md").split("### Errors")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` ", described, re.M)) == raised


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the README's manifest, pictures for it, and a run of the README's command for it, two steps long."""
    folder = tmp_path_factory.mktemp("readme")
    (manifest,) = blocks("README.md", "csv")
    (folder / "pairs.csv").write_text(manifest)
    random = np.random.default_rng(0)
    for row in csv.DictReader(io.StringIO(manifest)):
        path = folder / row["image"]
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    (command,) = [command for command in commands("README.md") if "--config.data.path=pairs.csv" in command]
    command = [argument.replace("--config=", f"--config={ROOT}/") for argument in command]
    return folder, run([*command, *tiny.FLAGS], folder)


def test_the_commands_for_your_own_data_run(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "mine" / "done").exists()
    result = folder / "runs" / "mine" / "eval" / "2" / "retrieval.json"
    result.unlink()
    (command,) = [command for command in commands("README.md") if command[2:] == ["launch.evaluate", "--workdir=runs/mine"]]
    done = run(command, folder)
    assert done.returncode == 0, done.stderr
    assert result.is_file()
    assert "image to text" in done.stdout
    page = folder / "runs" / "mine" / "report" / "index.html"
    assert str(page.relative_to(folder)) in done.stdout
    page.unlink()
    (command,) = [command for command in commands("README.md") if command[2:] == ["launch.report", "--workdir=runs/mine"]]
    done = run(command, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(page.relative_to(folder))
    assert "have a wrong answer first" in page.read_text(encoding="utf-8")
    done = run([*command[:3], "--workdir=runs/none"], folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    (folder / "runs" / "begun").mkdir()
    shutil.copy(folder / "runs" / "mine" / "config.json", folder / "runs" / "begun")
    done = run([*command[:3], "--workdir=runs/begun"], folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "--model=False makes the page without the model" in done.stderr
    done = run([*command[:3], "--workdir=runs/begun", "--model=False", "--compare=runs/mine"], folder)
    assert done.returncode == 0, done.stderr


def test_the_command_for_rows_that_lack_a_caption_runs(trained):
    folder, _ = trained
    alone = "photos/0005.jpg,,train\n,two red bicycles,train\n"
    (folder / "partly.csv").write_text((folder / "pairs.csv").read_text() + alone)
    (command,) = [command for command in commands("README.md") if "--config.data.path=partly.csv" in command]
    done = run([*(argument.replace("--config=", f"--config={ROOT}/") for argument in command), *tiny.FLAGS], folder)
    assert done.returncode == 0, done.stderr
    assert "in training 4 complete, 1 pictures and 1 captions alone" in done.stdout


def test_the_trainer_of_ones_own_runs_and_learns():
    lines = "".join(blocks("README.md", "bash")).splitlines()
    (command,) = [shlex.split(line) for line in lines if line.startswith("python -m examples.")]
    done = run(command)
    assert done.returncode == 0, done.stderr
    excess = [float(a) - float(b) for a, b in re.findall(r"contrast (\S+)  least (\S+)", done.stdout)]
    assert len(excess) == 60
    assert sum(excess[-10:]) < 0.8 * sum(excess[:10])
