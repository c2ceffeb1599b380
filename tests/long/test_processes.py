"""One run in several real processes: the same numbers and the same data as one process, and no hang whatever happens to one of them."""

import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_pairs
from running import runs

pytestmark = pytest.mark.xdist_group("processes")  # they share runs, and two cores
ROOT = Path(__file__).parents[2]
KEY_BIAS = re.compile(r"attention'\]\['key'\]\['bias'\]")  # its gradient is 0: softmax does not see what is the same for all keys
PATIENCE = 900  # seconds, of a machine that has much else to do
SETTINGS = (
    "--config=configs/manifest.py",
    "--config.data.split_column=split",
    "--config.data.tokenizer=word",
    "--config.data.image_size=8",
    "--config.data.threads=1",
    "--config.data.prefetch=1",
    "--config.model.embed_dim=8",
    *(f"--config.model.{tower}.{field}" for tower in ("image", "text") for field in ("width=8", "depth=1", "mlp_ratio=1")),
    "--config.model.text.heads=2",
    "--config.objective.bns.enabled=False",
    "--config.objective.cla.enabled=False",
    "--config.objective.bank_size=16",
    "--config.objective.groups=4",
    "--config.optim.warmup_steps=1",
    "--config.optim.lr=1e-9",
    "--config.train.batch_size=8",
    "--config.train.log_every=1",
    "--config.train.eval_every=0",
    "--config.train.save_every=1000000",
    "--config.train.keep=10",
    "--config.eval.tasks=('retrieval',)",
    "--config.eval.plots=False",
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@functools.cache
def environment():
    """Programs that run for milliseconds are not worth the optimisations of a compiler that runs for minutes, in each process."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}


def start(*command, output=subprocess.PIPE):
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT, text=True
    )


# --- the same numbers


def of_processes(folder, processes, devices, *names):
    """name -> leaf -> array, after the steps of tests/process_run.py."""
    port = free_port()
    with contextlib.ExitStack() as files:
        outputs = [files.enter_context((folder / f"{number}.txt").open("w")) for number in range(processes)]
        running = [
            start(ROOT / "tests/process_run.py", folder, processes, number, port, devices, *names, output=output)
            for number, output in enumerate(outputs)
        ]
    codes = [process.wait(timeout=PATIENCE) for process in running]
    assert codes == [0] * processes, "\n".join((folder / f"{number}.txt").read_text()[-2000:] for number in range(processes))
    return {name: dict(np.load(folder / f"{name}.npz")) for name in names}


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    return of_processes(tmp_path_factory.mktemp("one"), 1, 1, "bacl-dense", "sigmoid-dense", "infonce-dense")


@pytest.fixture(scope="module")
def of_four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    return folder, of_processes(folder, 4, 1, "bacl-ring", "sigmoid-ring")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for part in (".params", ".opt_state", ".bank.text", ".bank.index", "loss", "log_scale"):
        assert part in " ".join(found)
    for leaf, value in expected.items():
        if not np.issubdtype(value.dtype, np.floating):
            np.testing.assert_array_equal(found[leaf], value, err_msg=leaf)
        elif not KEY_BIAS.search(leaf):
            rounding = 1e-6 if "bs_" in leaf else 1e-7  # a boundary score is a difference of cosines, and rounds as they do
            assert np.linalg.norm(found[leaf] - value) <= 1e-5 * np.linalg.norm(value) + rounding, leaf


@pytest.mark.parametrize("kind", ["bacl", "sigmoid"])
def test_gradients_parameters_metrics_and_bank_of_four_are_those_of_one(kind, of_four, of_one):
    assert_same(of_four[1][f"{kind}-ring"], of_one[f"{kind}-dense"])


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """Two devices each; the chunked and the ring way in two parts."""
    return of_processes(tmp_path_factory.mktemp("two"), 2, 2, "bacl-dense", "bacl-chunked", "infonce-ring")


@pytest.mark.parametrize("name", ["bacl-dense", "bacl-chunked", "infonce-ring"])
def test_gradients_parameters_metrics_and_bank_of_two_with_two_devices_each(name, of_two, of_one):
    assert_same(of_two[name], of_one[f"{name.split('-')[0]}-dense"])


@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (1, 1)])
def test_what_four_saved_fewer_read_bit_for_bit(processes, devices, of_four):
    folder, saved = of_four
    found = of_processes(folder, processes, devices, "restore-sigmoid-ring")["restore-sigmoid-ring"]
    assert len(found) > 50
    for leaf, value in found.items():
        np.testing.assert_array_equal(value, saved["sigmoid-ring"][leaf], err_msg=leaf, strict=True)


# --- a run of the door


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """24 pairs, two each for validation and test."""
    splits = ["train"] * 20 + ["validation"] * 2 + ["test"] * 2
    return small_pairs.squares(tmp_path_factory.mktemp("data"), splits.__getitem__)


def launched(manifest, workdir, processes, *arguments):
    door = ["launch.local", f"--processes={processes}"] if processes > 1 else ["launch.train"]
    return start("-m", *door, *SETTINGS, f"--config.data.path={manifest}", f"--workdir={workdir}", *arguments)


def finish(process):
    out, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, out


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def wait_for_step(process, workdir, step):
    before = time.monotonic()
    while not any(line["step"] >= step for line in lines(workdir)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - before < PATIENCE
        time.sleep(0.2)


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def preempted(manifest, workdir, processes, after):
    """Trains until `after` steps more are logged and SIGTERM comes; the step that was saved."""
    first = len(lines(workdir))
    process = launched(manifest, workdir, processes, "--config.train.steps=100000")
    wait_for_step(process, workdir, first + after)
    process.send_signal(signal.SIGTERM)
    code, out = finish(process)
    assert code == 0, out
    assert out.count("preempted, resume with the same command") == 1
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert [line["step"] for line in lines(workdir)] == list(range(1, step + 1))
    sums = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=workdir / "checkpoints" / str(step), check=False)
    assert sums.returncode == 0
    return step


def test_preempted_on_four_it_goes_on_with_two_and_with_one_on_the_rows_that_are_due(manifest, tmp_path):
    """The learning rate is next to nothing, so the loss of a step tells its rows; one process from the start has the same."""
    steps = [preempted(manifest, tmp_path / "run", processes, after=3) for processes in (4, 2, 1)]
    assert steps == sorted(set(steps))
    code, out = finish(launched(manifest, tmp_path / "one", 1, f"--config.train.steps={steps[-1]}"))
    assert code == 0, out
    found, expected = ([line["loss"] for line in lines(tmp_path / name)] for name in ("run", "one"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(set(np.round(expected[-9:], 4))) > 5


@pytest.mark.parametrize("mesh", [(), ("--config.mesh.fsdp=2", "--config.mesh.fsdp_floor=64")])
def test_two_evaluate_draw_partners_and_report(manifest, tmp_path, mesh):
    """One process alone then evaluates the same checkpoint with the same result."""
    partners = (
        "enabled=True",
        "k=2",
        "pool=4",
        "hidden=4",
        "drawn_share=0.0",
        "partner_share=0.25",
        "partner_k=2",
        "partner_every=2",
        "list_delay=3",
    )
    settings = [*mesh, *(f"--config.objective.bns.{one}" for one in partners)]
    code, out = finish(launched(manifest, tmp_path / "run", 2, *settings, "--config.train.steps=6", "--config.train.eval_every=2"))
    assert code == 0, out
    assert (tmp_path / "run" / "done").exists()
    assert out.count("image to text, all captions") == 1
    assert json.loads((tmp_path / "run" / "eval" / "6" / "retrieval.json").read_text())["data"] == "manifest/test"
    assert [line["step"] for line in lines(tmp_path / "run") if "validation/retrieval/i2t_R@1" in line] == [2, 4, 6]
    assert (tmp_path / "run" / "checkpoints" / "6" / "partners").is_dir()
    path = tmp_path / "run" / "eval" / "6" / "retrieval.json"
    reported = json.loads(path.read_text())
    path.unlink()
    command = [sys.executable, "-m", "launch.evaluate", f"--workdir={tmp_path / 'run'}", "--tasks=retrieval"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("the run's own mesh does not fit" in done.stdout) == bool(mesh)
    alone = json.loads(path.read_text())
    assert alone["metrics"] == pytest.approx(reported["metrics"], abs=1e-3)
    assert alone["config_sha256"] == reported["config_sha256"]


def test_a_killed_process_ends_the_others_and_is_named(manifest, tmp_path):
    process = launched(manifest, tmp_path / "run", 4, "--config.train.steps=100000")
    wait_for_step(process, tmp_path / "run", 2)
    pids = children(process)
    assert len(pids) == 4
    os.kill(pids[2], signal.SIGKILL)
    before = time.monotonic()
    code, out = finish(process)
    assert time.monotonic() - before < 60
    assert code == 1
    log = tmp_path / "run" / "processes" / "process_2.txt"
    assert out.splitlines()[-1] == f"error: process 2 (pid {pids[2]}) was ended by SIGKILL, its output is in {log}; the others were ended"
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_killed_launcher_leaves_no_process(manifest, tmp_path):
    process = launched(manifest, tmp_path / "run", 2, "--config.train.steps=100000")
    wait_for_step(process, tmp_path / "run", 2)
    pids = children(process)
    assert len(pids) == 2
    process.kill()
    before = time.monotonic()
    finish(process)
    while any(map(runs, pids)):
        assert time.monotonic() - before < 10
        time.sleep(0.1)


def test_what_all_refuse_is_said_once(manifest, tmp_path):
    code, out = finish(launched(manifest, tmp_path / "run", 3, "--config.objective.groups=1"))
    said = [line for line in out.splitlines() if not line.startswith(("[Gloo]", "tokenizer"))]  # the former tells who it is connected to
    assert (code, said) == (2, ["error: train.batch_size 8 does not divide over the 3 devices: use 6 or 9"])


def test_without_a_launcher_survivors_end_too(manifest, tmp_path):
    joining = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2", "--config.train.steps=100000"]
    running = [launched(manifest, tmp_path / "run", 1, *joining, f"--process={number}") for number in range(2)]
    wait_for_step(running[0], tmp_path / "run", 2)
    running[1].kill()
    before = time.monotonic()
    code, out = finish(running[0])
    assert time.monotonic() - before < 60
    assert code != 0
    assert re.search(r"Task 1 heartbeat timeout|unhealthy", out), out
    finish(running[1])


@pytest.mark.parametrize(
    ("stuck", "place", "before"),
    [("read_data", "the data are read", "the start"), ("open_run", "the tokenizer is there", "checkpoints were checked")],
)
def test_a_process_that_is_alive_and_does_not_come_is_named(stuck, place, before, manifest, tmp_path):
    joining = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2", "--config.train.steps=2", f"--workdir={tmp_path}/run"]
    code = "import time; from launch import command, session, train; from bacl_jax.train import processes;"
    code += "processes.TOGETHER_SECONDS = 20;"
    running = [
        start(
            "-c", code + patch + "command.run(train.main, '')", *SETTINGS, f"--config.data.path={manifest}", *joining, f"--process={number}"
        )
        for number, patch in enumerate(("", f"session.{stuck} = lambda *arguments: time.sleep(10_000);"))
    ]
    (code, out), _ = map(finish, running)
    assert code == 1
    said = f"error: process 0 waited 20 s at: {place}; of 2 processes there did not come process 1 (last seen at: {before}): "
    assert [line for line in out.splitlines() if line.startswith(said)], out


def test_processes_that_disagree_say_so_and_end_with_code_2(manifest, tmp_path):
    joining = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"]
    running = [launched(manifest, tmp_path / "run", 1, *joining, f"--process={n}", f"--config.seed={n}") for n in range(2)]
    for code, out in map(finish, running):
        assert (code, out) == (2, "error: the processes do not agree: config.seed is 0 in process 0 and 1 in process 1\n")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]  # the folder is still free for any config


def test_a_missing_process_is_named(manifest, tmp_path):
    joining = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=3", "--wait_seconds=20"]
    running = [launched(manifest, tmp_path / "run", 1, *joining, f"--process={number}") for number in (0, 1)]
    for number, (code, out) in enumerate(map(finish, running)):
        assert code == 2
        assert out.startswith(f"error: process {number} waited 20 s for process 2 of 3 at 127.0.0.1:")
        assert out.count("\n") == 1
