"""What a door refuses: exit code 2 and one line within five seconds of work, and no device was touched."""

import contextlib
import fcntl
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 5  # of processor time: how long a process waits for a core says nothing of it
BACL = ("train", "--config=configs/emoji_bacl.py", "--workdir={tmp}/run")
DATA = ("train", "--config=configs/manifest.py", "--workdir={tmp}/run")
SHARDS = ("train", "--config=configs/webdataset.py", "--workdir={tmp}/run")


def launch(door, *arguments):
    """The finished process and the processor time that it took. JAX, if asked for its devices, ends it with a traceback."""
    command = [sys.executable, "-m", f"launch.{door}", *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "none_such"}, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def refused(*command):
    """The lines of a refusal."""
    done, seconds = launch(*command)
    assert done.returncode == 2, done.stderr
    assert seconds < SECONDS
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def test_a_process_that_asks_for_devices_would_crash(tmp_path):
    done, _ = launch(*(argument.format(tmp=tmp_path) for argument in BACL))
    assert done.returncode == 1
    assert "Unable to initialize backend 'none_such'" in done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ((*BACL, "--config.objective.bns.kk=1"), "config.objective.bns.kk is unknown: did you mean --config.objective.bns.k?"),
        ((*BACL, "--workdri={tmp}"), "Unknown command line flag 'workdri'"),
        ((*BACL, "now"), "'now' is no flag: every argument has the form --name=value"),
        (BACL[:2], "--config and --workdir must be given: --config=configs/emoji_bacl.py --workdir=runs/bacl"),
        (("train", "--config=configs/none.py", BACL[2]), "--config=configs/none.py: no such file; the configs are in configs/"),
        ((*BACL, "--config.train.steps=2.5"), "config.train.steps = '2.5': must be an integer >= 1; the default is 1000"),
        ((*BACL, "--config.data.augment_flip=maybe"), "config.data.augment_flip = 'maybe': must be True or False"),
        ((*BACL, "--config.objective=1"), "config.objective"),
        ((*BACL, "--config.train.steps=0"), "config.train.steps = 0: must be an integer >= 1; set it with --config.train.steps=..."),
        ((*BACL, "--config.eval.tasks=('vqa',)"), "config.eval.tasks = ('vqa',): must be a tuple, each entry one of retrieval, halftrue"),
        ((*BACL, "--config.mesh.data=0"), "config.mesh.data = 0: must be -1, the devices that remain, or at least 1; set it with"),
        ((*BACL, "--config.mesh.fsdp=3", "--devices_per_process=4"), "mesh.fsdp 3 x mesh.tensor 1 = 3 does not divide the 4 devices"),
        ((*BACL, "--config.mesh.data=2", "--devices_per_process=4"), "but there are 4 devices: set mesh.data to -1 or 4"),
        ((*BACL, "--config.mesh.data=3"), "train.batch_size 256 does not divide over the 3 devices: use 255 or 258"),
        (DATA, "config.data.path = None: must name a CSV, JSONL or Parquet file"),
        ((*DATA, "--config.data.path=none.csv"), f"config.data.path = 'none.csv': there is no none.csv in {ROOT}; set it with"),
        ((*SHARDS, "--config.data.path={tmp}/none/{{0..3}}.tar"), "config.data.path = '{tmp}/none/{{0..3}}.tar': there is no {tmp}/none;"),
        ((*BACL, "--config.model.text.pretrained={tmp}/none"), "config.model.text.pretrained = '{tmp}/none': there is no {tmp}/none;"),
        (("train", BACL[1], "--workdir=/proc/none"), "--workdir=/proc/none cannot be written: No such file or directory; take another"),
        (("train", BACL[1], "--workdir={tmp}/file"), "--workdir={tmp}/file cannot be written: "),
        ((*BACL, "--coordinator=here", "--processes=2", "--process=0"), "--coordinator=here: must be host:port, such as 10.0.0.1:1234"),
        ((*BACL, "--coordinator=h:1", "--processes=2", "--process=2"), "--process=2 must be below --processes=2: the first one is 0"),
        ((*BACL, "--processes=2"), "--coordinator, --process must be given too: --coordinator=host:port"),
        (("local", *BACL[1:]), "--processes, --config and --workdir must be given"),
        (("evaluate", "--workdir={tmp}", "--tasks=vqa"), "eval.tasks: vqa; allowed: retrieval, halftrue, localization, robustness, fusion"),
        (("evaluate", "--workdir={tmp}/none"), "--workdir={tmp}/none is no workdir of a run: {tmp}/none/config.json does not exist"),
    ],
)
def test_bad_usage_is_one_line(tmp_path, command, said):
    (tmp_path / "file").touch()
    (line,) = refused(*(argument.format(tmp=tmp_path) for argument in command))
    assert said.format(tmp=tmp_path) in line
    assert not (tmp_path / "run").exists()


def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        flags = (f"--coordinator={place}", "--processes=2", "--process=0")
        (line,) = refused(*(argument.format(tmp=tmp_path) for argument in BACL), *flags)
    assert line.startswith(f"--coordinator={place}: process 0 cannot listen there: Address already in use")
    assert line.endswith("; take another port")


@contextlib.contextmanager
def held(workdir):
    """A workdir in which process 123 trains."""
    (workdir / "lock").write_text("123\n")
    with (workdir / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_a_workdir_in_use(tmp_path, check):
    with held(tmp_path):
        (line,) = refused(*BACL[:2], f"--workdir={tmp_path}", *check)
    assert line == f"--workdir={tmp_path} is in use by another process (pid 123): wait for it or end it, or take another --workdir"
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_workdir_of_another_config(tmp_path):
    (tmp_path / "config.json").write_text('{"optim": {"lr": 0.5}, "objective": {"bns": {"enabled": true}, "cla": {"enabled": true}}}')
    (line,) = refused(*BACL[:2], f"--workdir={tmp_path}", "--config.train.steps=60")
    assert line.startswith("the workdir belongs to another config: config.optim.lr was 0.5, is now 0.004")
    assert line.endswith("Take another --workdir, or set back: --config.optim.lr=0.5")


def test_check_has_a_line_for_each_thing_that_is_wrong(tmp_path):
    wrong = ("--config.train.steps=5", "--config.objective.bns.pool=2", "--config.data.path=none.csv", "--config.mesh.data=3")
    with held(tmp_path):
        lines = refused("train", "--config=configs/manifest.py", f"--workdir={tmp_path}", *wrong, "--check")
    begins = ("config.objective.bns.pool = 2: ", "config.optim.warmup_steps = ", "config.data.path = 'none.csv': ", "train.batch_size")
    assert len(lines) == len(begins) + 1
    for line, begin in zip(lines, (*begins, f"--workdir={tmp_path} is in use"), strict=True):
        assert line.startswith(begin)
