"""Jobs under a real Slurm of one node, on loopback. Needs root: the daemons run as it.

The same config is trained by one process, by two of `launch.local` and by two tasks of a job; a job that is preempted, and put back in the
queue by hand, goes on exactly.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import small_pairs

from launch.job import describe
from launch.submit import submit

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds, of a machine that has much else to do
STEPS = 300
VARIABLES = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
OVERRIDES = (
    "data.split_column=split",
    "data.tokenizer=word",
    "data.image_size=8",
    "data.threads=1",
    "data.prefetch=1",
    "model.embed_dim=8",
    *(f"model.{tower}.{field}" for tower in ("image", "text") for field in ("width=8", "depth=1", "mlp_ratio=1")),
    "model.text.heads=2",
    "objective.bns.enabled=False",
    "objective.cla.enabled=False",
    "objective.bank_size=16",
    "objective.groups=2",
    "optim.warmup_steps=1",
    "train.batch_size=8",
    "train.log_every=1",
    "train.eval_every=0",
    "train.save_every=1000000",
    f"train.steps={STEPS}",
    "train.keep_best=None",
    "eval.tasks=()",
)
MACHINES = {"tasks_per_node": 2, "python": sys.executable, "environment": [f"{name}={value}" for name, value in VARIABLES.items()]}
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
KillWait=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=600
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


def free_ports(count):
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def run(*command):
    return subprocess.run([*map(str, command)], cwd=ROOT, env=os.environ | VARIABLES, capture_output=True, text=True, check=False)


def wait_until(what, found, patience=PATIENCE):
    before = time.monotonic()
    while not (value := found()):
        assert time.monotonic() - before < patience, what
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module", autouse=True)
def slurm():
    """munged, slurmctld and slurmd in a folder of their own; SLURM_CONF names it to all commands."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short: a socket's path is at most 107 characters long
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(host=host, ports=free_ports(2), folder=folder))
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    files = [f"--{name}={folder}/{name}" for name in ("pid-file", "log-file", "seed-file")]
    daemons = (
        ["munged", "--foreground", "--force", f"--key-file={folder}/key", f"--socket={folder}/munge.socket", *files],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D"],
    )
    with pytest.MonkeyPatch.context() as patch, (folder / "daemons.txt").open("w") as output:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        running = []
        try:
            for daemon in daemons:
                running.append(subprocess.Popen(daemon, stdout=output, stderr=output))
                if daemon[0] == "munged":
                    wait_until("munged listens", lambda: (folder / "munge.socket").exists(), 60)
            wait_until("the node is idle", lambda: run("sinfo", "--noheader", "--format=%T").stdout.split() == ["idle"], 120)
            yield
        finally:
            run("scancel", "--state=RUNNING", "--signal=KILL", "--me", "--full")
            run("scancel", "--me")
            for process in reversed(running):
                process.terminate()
                process.wait(timeout=60)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_pairs.squares(tmp_path_factory.mktemp("data"), lambda number: "train" if number < 20 else "test")


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return np.asarray([line["loss"] for line in lines])


def step(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return len([line for line in lines if line.endswith("}")])


def job(number):
    """The fields of a job that Slurm knows."""
    return dict(pair.split("=", 1) for pair in run("scontrol", "show", "job", number).stdout.split() if "=" in pair)


def door(data, workdir, *arguments):
    given = [f"--config.{override}" for override in (*OVERRIDES, f"data.path={data}")]
    fields = [f"--job.{name}={tuple(value) if isinstance(value, list) else value}" for name, value in MACHINES.items()]
    files = f"--files={workdir.parent / 'jobs'}"
    return run(
        sys.executable,
        "-m",
        "launch.jobs",
        "--job=configs/jobs/base.py",
        *fields,
        "--config=configs/manifest.py",
        f"--workdir={workdir}",
        files,
        *given,
        *arguments,
    )


def submitted(data, workdir, *arguments):
    done = door(data, workdir, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def start_again(number, restarts, output):
    """Slurm lets a job that was put back wait two minutes; here it need not."""
    wait_until(
        f"{output.read_text() if output.exists() else ''} is in the queue",
        lambda: job(number)["JobState"] in ("PENDING", "FAILED", "COMPLETED"),
    )
    assert (job(number)["JobState"], job(number)["Restarts"]) == ("PENDING", str(restarts)), output.read_text()
    run("scontrol", "update", f"jobid={number}", "StartTime=now")


def finished(number, output):
    state = wait_until(
        "the job has ended", lambda: job(number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING") and job(number)["JobState"]
    )
    assert state == "COMPLETED", output.read_text()


def train(data, workdir, *door):
    given = [f"--config.{override}" for override in (*OVERRIDES, f"data.path={data}")]
    done = run(sys.executable, "-m", *door, "--config=configs/manifest.py", f"--workdir={workdir}", *given)
    assert done.returncode == 0, done.stderr
    return losses(workdir)


@pytest.fixture(scope="module")
def of_one(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("one"), "launch.train")


@pytest.fixture(scope="module")
def of_two(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("two"), "launch.local", "--processes=2")


def test_slurm_takes_the_job_and_refuses_one_that_never_fits(data, tmp_path):
    done = door(data, tmp_path / "run", "--action=check")
    assert done.returncode == 0, done.stderr
    assert "using 2 processors" in done.stderr
    done = door(data, tmp_path / "run", "--action=check", "--job.nodes=50")
    assert done.returncode == 1
    assert not (tmp_path / "run").exists()


def test_a_job_that_is_interrupted_twice_goes_on_exactly_and_equals_one_process(data, tmp_path, of_one, of_two):
    """By the signal that Slurm sends before the time limit, then by scontrol; it has each step of the uninterrupted run once."""
    workdir, output = tmp_path / "run", tmp_path / "run" / "slurm.txt"
    number = submitted(data, workdir)
    wait_until("20 steps", lambda: step(workdir) >= 20)
    run("scancel", "--signal=TERM", number)
    start_again(number, 1, output)
    first = step(workdir)
    wait_until("20 steps more", lambda: step(workdir) >= first + 20)
    run("scontrol", "requeue", number)
    start_again(number, 2, output)
    second = step(workdir)
    finished(number, output)
    assert 20 <= first < second < STEPS
    assert output.read_text().count("preempted, resume with the same command") == 2
    assert (workdir / "done").exists()
    np.testing.assert_array_equal(losses(workdir), of_two)
    for found in (of_two, losses(workdir)):
        np.testing.assert_allclose(found[:20], of_one[:20], rtol=1e-5, atol=1e-5)
    assert of_one[0] - of_one[19] > 1e-3  # it learns: a run without updates would agree too


def test_a_preempted_job_comes_back_and_a_deleted_one_does_not(data, tmp_path):
    """Preempted by a job of a partition of higher priority."""
    workdir, output = tmp_path / "run", tmp_path / "run" / "slurm.txt"
    number = submitted(data, workdir, "--job.name=gone", "--config.train.steps=100000")
    wait_until("5 steps", lambda: step(workdir) >= 5)
    other = run("sbatch", "--parsable", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=true").stdout.strip()
    start_again(number, 1, output)
    first = step(workdir)
    wait_until("the other job has ended", lambda: job(other)["JobState"] == "COMPLETED")
    wait_until("5 steps more", lambda: step(workdir) >= first + 5)
    assert number in door(data, workdir, "--job.name=gone", "--action=status").stdout
    assert door(data, workdir, "--job.name=gone", "--action=delete").returncode == 0
    wait_until("the job is cancelled", lambda: job(number)["JobState"] == "CANCELLED")
    assert job(number)["Restarts"] == "1"
    assert not (workdir / "done").exists()


def test_a_bad_config_ends_the_job(data, tmp_path):
    workdir = tmp_path / "run"
    number = submitted(data, workdir, "--config.train.batch_size=7")
    wait_until("the job has failed", lambda: job(number)["JobState"] == "FAILED")
    assert (job(number)["ExitCode"], job(number)["Restarts"]) == ("2:0", "0")
    assert "train.batch_size 7 does not divide over the 2 devices" in (workdir / "slurm.txt").read_text()


def test_submitit_trains_the_same_and_puts_the_job_back_before_its_end(data, tmp_path, of_two):
    workdir = tmp_path / "run"
    described = describe(
        MACHINES | {"hours": 1.0}, config="configs/manifest.py", workdir=str(workdir), overrides=(*OVERRIDES, f"data.path={data}")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        handle = submit(described, tmp_path / "jobs")
    wait_until("20 steps", lambda: step(workdir) >= 20)
    run("scancel", "--signal=USR2", handle.job_id)  # what Slurm sends when the time is nearly up
    start_again(handle.job_id, 1, Path(handle.paths.stderr))
    assert step(workdir) < STEPS
    finished(handle.job_id, Path(handle.paths.stderr))
    assert handle.results() == [True, True]
    np.testing.assert_array_equal(losses(workdir), of_two)
