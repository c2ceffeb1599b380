"""Jobs are rendered for each engine: valid scripts, the training's exact arguments, and one line for what an engine cannot honour."""

import dataclasses
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bacl_jax.config import ConfigError
from bacl_jax.settings import leaves
from launch.engines import ENGINES, plan
from launch.job import Machines, describe
from launch.submit import submit

ROOT = Path(__file__).parents[1]
FOLDER = Path("runs/jobs/bacl")
OVERRIDES = ("train.steps=5", "data.vendors=('Goog', 'Twtr')", 'data.path=it\'s a "file" $HOME `id` \\.csv')
GIVEN = {"config": "configs/emoji_bacl.py", "workdir": "/runs/a folder/run", "overrides": OVERRIDES}
EVERY_ENGINE = pytest.mark.parametrize("engine", ENGINES)


def machines(engine, **changed):
    settings = importlib.import_module(f"configs.jobs.{engine}").get_config().to_dict()
    for name, value in changed.items():
        *groups, leaf = name.split("__")
        place = settings
        for group in groups:
            place = place[group]
        place[leaf] = value
    return settings


def job(engine, **changed):
    return describe(machines(engine, **changed), **GIVEN)


def files(engine, action="submit", **changed):
    return {path.name: text for path, text in plan(engine, action, job(engine, **changed), FOLDER).files.items()}


def scripts(engine, **changed):
    """name -> shell script, those within YAML and within another's arguments included."""
    found = {}
    for name, text in files(engine, **changed).items():
        if name == "jobset.yaml":
            command = jobset(text)["template"]["spec"]["template"]["spec"]["containers"][0]["command"][2]
            found[name] = command.replace("$$", "$")  # as Kubernetes does
        elif name == "task.yaml":
            found |= {f"{name} {part}": yaml.safe_load(text)[part] for part in ("setup", "run")}
        else:
            found[name] = text
        if name == "xpk.sh":
            (line,) = [word for word in shlex.split(text, comments=True) if word.startswith("--command=")]
            found["xpk command"] = line.removeprefix("--command=")
            assert "\n" not in line  # xpk puts it in the middle of a line
    return found


def jobset(text):
    (replicated,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    return replicated


@EVERY_ENGINE
def test_scripts_are_valid_shell(engine, tmp_path):
    many = {"environment": ("A=b c", "D=$e'f"), "setup": ("module load cuda && true",), "name": "a-1"}
    for number, changed in enumerate(({}, many)):
        for name, text in scripts(engine, **changed).items():
            path = tmp_path / f"{number} {name}"
            path.write_text(text)
            for command in (
                ["bash", "-n"],
                [Path(sys.executable).with_name("shellcheck"), "--shell=bash", "--exclude=SC1091,SC2016,SC1003"],
            ):
                done = subprocess.run([*command, path], capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


# --- the training's arguments: python is a shell script that prints them; what engines and clouds put beside it is set as they do


SHOW = '#!/bin/bash\nprintf "%s\\n" "$A" "$@" > "$SHOWN"\n'


@pytest.fixture
def shown(tmp_path):
    """Runs a script of an engine; (value of the variable A, the arguments of python)."""

    def shown(script, variables, tools):
        (tmp_path / "bin").mkdir()
        for name, text in {"python": SHOW, **tools}.items():
            path = tmp_path / "bin" / name
            path.write_text(text)
            path.chmod(0o755)
        (tmp_path / "bacl").mkdir()
        base = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path), "SHOWN": str(tmp_path / "shown")}
        done = subprocess.run(["bash", "-c", script], env=base | variables, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        variable, *arguments = (tmp_path / "shown").read_text().splitlines()
        return variable, arguments

    return shown


SRUN = """#!/bin/bash
while [ "$1" != bash ]; do shift; done  # the command of the tasks ends srun's own options
export SLURM_PROCID=9 SLURM_LOCALID=1 CUDA_VISIBLE_DEVICES=4,5,6,7
"$@"
"""
SLURM_TOOLS = {
    "srun": SRUN,
    "scontrol": '#!/bin/bash\n[ "$1" = show ] && printf "n7\\nn8\\n" || echo "$@"\n',
    "squeue": "#!/bin/bash\necho CANCELLED\n",
}
CURL = '#!/bin/bash\ncase "${@: -1}" in */agent-worker-number) echo 1;; */worker-network-endpoints) echo x:y:10.0.0.1,x:z:10.0.0.2;; esac\n'
PLACES = {  # what each process knows of its place, and what the training is told of it
    "slurm": (
        "job.sbatch",
        {"SLURM_JOB_ID": "4099", "SLURM_NTASKS": "16", "SLURM_JOB_NODELIST": "n[7-8]"},
        SLURM_TOOLS,
        ["--coordinator=n7:61443", "--processes=16", "--process=9"],
    ),
    "tpu_vm": (
        "worker.sh",
        {},
        {"curl": CURL},
        ["--coordinator=10.0.0.1:8476", "--processes=2", "--process=1", "--wait_seconds=1800"],
    ),
    "gke": (
        "jobset.yaml",
        {"JOB_COMPLETION_INDEX": "3"},
        {},
        ["--preempted_code=75", "--coordinator=bacl-train-0-0.bacl:8476", "--processes=4", "--process=3", "--wait_seconds=3600"],
    ),
    "xpk": (
        "xpk command",
        {"TPU_WORKER_HOSTNAMES": "a.x,b.x", "TPU_WORKER_ID": "1"},
        {},
        ["--preempted_code=75", "--coordinator=a.x:8476", "--processes=2", "--process=1", "--wait_seconds=3600"],
    ),
    "sky": (
        "task.yaml run",
        {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"},
        {},
        ["--preempted_code=75", "--coordinator=10.0.0.1:8476", "--processes=2", "--process=1", "--wait_seconds=1800"],
    ),
}


@EVERY_ENGINE
def test_the_training_gets_its_arguments_and_its_place(engine, shown):
    name, variables, tools, place = PLACES[engine]
    changed = {"python": "python", "setup": ("true # ours", "sleep 0 &"), "environment": ("A=b 'c' $d $$e",)}
    value, arguments = shown(scripts(engine, **changed)[name], variables, tools)
    assert value == "b 'c' $d $$e"
    training = ["-m", "launch.train", "--config=configs/emoji_bacl.py", "--workdir=/runs/a folder/run"]
    assert arguments == [*training, *(f"--config.{override}" for override in OVERRIDES), *place]


def test_one_process_has_no_place(shown):
    alone = {"nodes": 1, "tasks_per_node": 1, "gpus_per_task": 0, "python": "python", "setup": ()}
    variables = {"SLURM_JOB_ID": "4099", "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": "n7"}
    _, arguments = shown(scripts("slurm", **alone)["job.sbatch"], variables, SLURM_TOOLS)
    assert arguments[-1] == f"--config.{OVERRIDES[-1]}"


def test_a_process_takes_its_gpus_of_those_of_the_node(shown):
    show = '#!/bin/bash\nprintf "%s\\n" "$CUDA_VISIBLE_DEVICES" > "$SHOWN"\n'
    variables = PLACES["slurm"][1]
    changed = {"python": "python", "setup": (), "tasks_per_node": 2, "gpus_per_task": 2}
    assert shown(scripts("slurm", **changed)["job.sbatch"], variables, SLURM_TOOLS | {"python": show}) == ("6,7", [])


# --- what the engine is told


def test_options_of_a_slurm_job():
    changed = {"slurm__account": "us", "slurm__options": ("--exclusive",), "hours": 0.5, "grace_seconds": 120, "image": "img"}
    text = files("slurm", **changed)["job.sbatch"]
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert options == [
        "--job-name=bacl",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--cpus-per-task=8",
        "--gpus-per-node=8",
        "--mem=400G",
        "--time=30",
        "--partition=gpu",
        "--account=us",
        "--exclusive",
        "--signal=TERM@120",
        "--requeue",
        "--open-mode=append",
        "--output='/runs/a folder/run/slurm.txt'",
    ]
    assert "--cpus-per-task=8 --container-image=img" in text


def test_a_jobset_tries_again_but_not_with_a_bad_config():
    text = files("gke", gke__queue="users", memory_gib=100, folder="/app")["jobset.yaml"]
    whole, spec = yaml.safe_load(text), jobset(text)["template"]["spec"]
    assert whole["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "users"}
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (4, 4, 0)
    assert whole["spec"]["failurePolicy"]["maxRestarts"] == 100
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4, "memory": "100Gi"}
    assert (pod["containers"][0]["workingDir"], pod["terminationGracePeriodSeconds"]) == ("/app", 300)
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    gpus = files("gke", gke__tpu=None, gke__topology=None, spot=False, gke__gpu="nvidia-h100-80gb", gpus_per_task=8)["jobset.yaml"]
    pod = jobset(gpus)["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}


def test_a_sky_task():
    task = yaml.safe_load(files("sky", cpus_per_task=8, sky__infra="gcp")["task.yaml"])
    assert task["resources"] == {
        "infra": "gcp",
        "accelerators": "H100:8",
        "cpus": "8+",
        "use_spot": True,
        "job_recovery": {"recover_on_exit_codes": [75]},
    }
    assert (task["num_nodes"], task["file_mounts"]) == (2, {"/runs": {"source": "gs://my-runs", "mode": "MOUNT"}})


@EVERY_ENGINE
def test_every_action_is_a_command_that_names_the_job(engine):
    for action in ENGINES[engine].actions:
        found = plan(engine, action, job(engine, name="one-2"), FOLDER)
        assert bool(found.files) == (action in ("check", "submit"))
        said = " ".join(map(shlex.join, found.commands)) + "".join(found.files.values())
        assert "one-2" in said or action in ("status", "logs"), action
        assert "{" not in " ".join(map(shlex.join, found.commands))


def test_the_files_are_written_and_the_first_command_that_fails_counts(tmp_path):
    found = plan("slurm", "submit", job("slurm"), tmp_path / "jobs")
    commands = [["touch", str(tmp_path / "one")], ["sh", "-c", "exit 3"], ["touch", str(tmp_path / "two")]]
    assert dataclasses.replace(found, commands=commands).run() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs", "one"]
    assert (tmp_path / "jobs" / "job.sbatch").read_text().startswith("#!/bin/bash\n")
    with pytest.raises(ConfigError, match="none-such is not installed here"):
        dataclasses.replace(found, commands=[["none-such"]]).run()


# --- what cannot be


@pytest.mark.parametrize(
    ("engine", "changed", "said"),
    [
        ("slurm", {"nodes": 0}, "job.nodes = 0: must be an integer >= 1; set it with --job.nodes=..."),
        ("slurm", {"name": "A b"}, "job.name = 'A b': must be a text of at most 40 of a-z, 0-9 and -"),
        ("slurm", {"environment": ("A",)}, "must be a tuple, each entry a text of the form NAME=value"),
        ("slurm", {"setup": ("a\nb",)}, "job.setup = .*: must be a tuple, each entry a text of one line"),
        ("slurm", {"slurm__partition": "gpu\ntouch x"}, "job.slurm.partition = .*: must be a text of one line or None"),
        ("slurm", {"hours": 0.05}, "job.grace_seconds = 300: must be less than job.hours = 0.05"),
        ("slurm", {"grace_seconds": 65536}, "job.grace_seconds = 65536"),
        ("slurm", {"spot": True}, "job.spot = True: slurm has no place for it: leave it at False, or take --engine=tpu_vm or"),
        ("tpu_vm", {"nodes": 4}, "job.nodes = 4: tpu_vm has no place for it: leave it at 1, or take --engine=slurm or"),
        ("tpu_vm", {"cloud__zone": None}, "job.cloud.zone = None: tpu_vm needs it; set it with --job.cloud.zone=..."),
        ("gke", {"nodes": 2}, r"job.gke.topology = '4x4' has 16 chips, and job.nodes x job.gke.chips = 2 x 4 must be as many"),
        ("gke", {"gke__topology": "16"}, "job.gke.topology = '16': must be a text such as 4x4 or 2x2x4 or None"),
        ("gke", {"gke__mount": "/data"}, "--workdir=/runs/a folder/run: must be under job.gke.mount = '/data'"),
        ("gke", {"gke__gpu": "nvidia-l4"}, "a node has GPUs or TPUs"),
        ("gke", {"gke__tpu": None}, "job.gke.topology = '4x4': is of a TPU slice"),
        ("gke", {"gpus_per_task": 4}, "job.gpus_per_task = 4: a TPU's node has no GPUs"),
        ("xpk", {"image": None}, "job.image = None: xpk needs it"),
        ("sky", {"hours": 3.0}, "job.hours = 3.0: sky has no place for it: leave it at None, or take --engine=slurm"),
    ],
)
def test_what_an_engine_cannot_honour_is_refused(engine, changed, said):
    with pytest.raises(ConfigError, match=said):
        plan(engine, "submit", job(engine, **changed), FOLDER)


@pytest.mark.parametrize("name", ["null", "yes", "on"])
def test_words_of_yaml_are_names_as_any_other(name):
    assert yaml.safe_load(files("gke", name=name, gke__namespace=name)["jobset.yaml"])["metadata"] == {
        "name": name,
        "namespace": name,
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
    }
    assert yaml.safe_load(files("sky", name=name)["task.yaml"])["name"] == name


def test_texts_go_into_yaml_and_slurm_as_they_are():
    strange = GIVEN | {"workdir": "/runs/\N{GRINNING FACE} %j"}
    made = {engine: plan(engine, "submit", describe(machines(engine), **strange), FOLDER).files for engine in ("sky", "slurm")}
    (task,), (script,) = (found.values() for found in made.values())
    assert "/runs/\N{GRINNING FACE} %j" in yaml.safe_load(task)["run"]
    assert "#SBATCH --output='/runs/\N{GRINNING FACE} %%j/slurm.txt'" in script


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(ConfigError, match=r"--files=.*/file/x: cannot write job.sbatch there"):
        plan("slurm", "check", job("slurm"), tmp_path / "file" / "x").run()


def test_what_is_no_engine_no_action_and_no_folder():
    with pytest.raises(ConfigError, match=r"--engine=pbs: must be one of slurm, tpu_vm, gke, xpk, sky"):
        plan("pbs", "submit", job("slurm"), FOLDER)
    with pytest.raises(ConfigError, match=r"--action=check: must be one of submit, status, logs, delete with --engine=tpu_vm"):
        plan("tpu_vm", "check", job("tpu_vm"), FOLDER)
    with pytest.raises(ConfigError, match=r"--workdir='runs/bacl': must begin with /"):
        describe(machines("slurm"), config="configs/emoji_bacl.py", workdir="runs/bacl")


def test_submitit_refuses_what_it_has_no_place_for(tmp_path):
    with pytest.raises(ConfigError, match=r"job.image = 'x': submitit has no place for it"):
        submit(job("slurm", image="x"), tmp_path)
    with pytest.raises(ConfigError, match=r"job.hours = None: submitit needs it"):
        submit(job("slurm", hours=None), tmp_path)


# --- the files of machines, and the door


def test_base_holds_every_field_with_its_default_and_a_comment():
    base = machines("base")
    assert describe(base, **GIVEN) == describe({}, **GIVEN)

    def names(settings, prefix=""):
        for key, value in settings.items():
            yield from names(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]

    assert {*names(base)} == {name for name, _ in leaves(Machines())}
    for line in (ROOT / "configs" / "jobs" / "base.py").read_text().splitlines():
        if re.match(r"    \w+\.\w+ = (?!\w+\(\)$)", line):
            assert "  # " in line, line


def launch(*arguments):
    command = [sys.executable, "-m", "launch.jobs", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False)


def test_a_dry_run_prints_what_would_run_and_does_nothing(tmp_path):
    given = ("--config=configs/emoji_bacl.py", f"--workdir={tmp_path}/run", f"--files={tmp_path}/jobs", "--config.data.vendors=('Goog',)")
    done = launch("--job=configs/jobs/slurm.py", "--job.nodes=3", *given, "--dry_run")
    assert done.returncode == 0, done.stderr
    expected = describe(
        machines("slurm", nodes=3), config="configs/emoji_bacl.py", workdir=f"{tmp_path}/run", overrides=["data.vendors=('Goog',)"]
    )
    assert done.stdout == f"{plan('slurm', 'submit', expected, tmp_path / 'jobs' / 'bacl')}\n"
    assert not list(tmp_path.iterdir())


def test_a_bad_job_and_a_bad_config_are_one_line_and_exit_code_2(tmp_path):
    given = ("--config=configs/emoji_bacl.py", f"--workdir={tmp_path}/run", "--dry_run")
    for arguments, said in (
        (("--job=configs/jobs/slurm.py", "--job.nodess=3"), "job.nodess is unknown: did you mean --job.nodes?"),
        (("--job=configs/jobs/slurm.py", "--config.train.steps=0"), "config.train.steps = 0: must be an integer >= 1"),
    ):
        done = launch(*given, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr


def test_templates_are_part_of_the_package():
    patterns = re.search(r"^launch = (.*)$", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    packed = {path for pattern in json.loads(patterns) for path in (ROOT / "launch").glob(pattern)}
    assert {ROOT / "launch" / name for engine in ENGINES.values() for name in engine.files} <= packed
