"""W&B in its offline mode and MLflow on a server of this machine, over a kill and a resume; TensorBoard and xprof read what is written."""

import io
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
STEPS = list(range(1, 21))
EVALUATED = [4, 8, 12, 16, 20]


def run(workdir, trackers, *last, **environment):
    """The script of this folder; what it printed."""
    variables = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
        "WATCH": json.dumps({"trackers": trackers, "project": "tried"}),
    }
    command = [sys.executable, str(ROOT / "tests" / "peers" / "tracked_run.py"), str(workdir), *map(str, last)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables | environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == (-signal.SIGKILL if last else 0), done.stderr
    return done


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of an MLflow server that keeps all in a folder."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log.txt").read_text()
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def asked(address, path, **body):
    """The answer of MLflow's REST interface."""
    request = urllib.request.Request(f"{address}/api/2.0/mlflow/{path}", json.dumps(body).encode() if body else None)
    request.add_header("Content-Type", "application/json")
    return json.loads(urllib.request.urlopen(request, timeout=30).read())


def test_mlflow_has_one_run_with_each_step_once(tmp_path, server):
    run(tmp_path, ["mlflow"], 12, MLFLOW_TRACKING_URI=server)
    run(tmp_path, ["mlflow"], MLFLOW_TRACKING_URI=server)
    experiment = asked(server, "experiments/get-by-name?experiment_name=tried")["experiment"]["experiment_id"]
    (found,) = asked(server, "runs/search", experiment_ids=[experiment])["runs"]
    assert (found["info"]["run_name"], found["info"]["status"]) == (tmp_path.name, "FINISHED")
    params = {one["key"]: one["value"] for one in found["data"]["params"]}
    assert (params["train.steps"], params["objective.bns.enabled"]) == ("20", "True")
    for name, wanted in (("loss", STEPS), ("validation/retrieval/i2t_R_at_1", EVALUATED)):
        assert steps_of(server, found, name) == wanted, name
    seen = steps_of(server, found, "boundary_score/p50")  # killed before it had delivered anything: these are not in the log
    assert {*seen} in ({12, 16, 20}, {8, 12, 16, 20})
    assert len(seen) == len({*seen})
    files = asked(server, f"artifacts/list?run_id={found['info']['run_id']}&path=images")["files"]
    assert sum(one["path"].endswith(".png") for one in files) == len(seen)


def steps_of(server, run, metric):
    """Steps of all values that a run of MLflow has of a metric."""
    history = asked(server, f"metrics/get-history?run_id={run['info']['run_id']}&metric_key={metric}")["metrics"]
    return sorted(int(one["step"]) for one in history)


def test_wandb_offline_has_one_run_with_each_step_once(tmp_path):
    run(tmp_path, ["wandb"], 12, WANDB_MODE="offline", DELIVERED="1")
    run(tmp_path, ["wandb"], WANDB_MODE="offline")
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]  # the run's id
    rows = list(itertools.chain(*(history(next(folder.glob("*.wandb"))) for folder in (first, second))))
    assert [row["_step"] for row in rows] == STEPS
    assert all("loss" in row for row in rows)
    assert [row["_step"] for row in rows if "validation/retrieval/i2t_R@1" in row] == EVALUATED
    for name, kind in (("validation/attention/1", "image-file"), ("boundary_score", "histogram")):
        seen = {row["_step"]: row[f"{name}/_type"] for row in rows if f"{name}/_type" in row}
        assert {16, 20} <= seen.keys() <= {*EVALUATED}  # what comes from the log after a kill has numbers alone
        assert {*seen.values()} == {kind}


def history(path):
    """The logged rows of a .wandb file: records in blocks of 32 KiB, each after a checksum, a length and whether it is a part."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        if not kind:
            break
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record, parts = Record.FromString(parts), b""
            if record.WhichOneof("record_type") == "history":
                row = {}
                for item in record.history.item:
                    row[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
                yield row


@pytest.mark.parametrize(
    ("tracker", "nowhere"),
    [
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}),
        ("wandb", {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}),
    ],
)
def test_a_service_that_is_not_there_costs_a_warning(tmp_path, tracker, nowhere):
    start = time.monotonic()
    done = run(tmp_path, [tracker], **nowhere)
    assert time.monotonic() - start < 300
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == STEPS
    assert f"{tracker} was not given 20 of 20 records; metrics.jsonl has all numbers" in done.stderr


def test_tensorboard_reads_each_step_once(tmp_path):
    run(tmp_path, ["tensorboard"], 12)
    time.sleep(1.1)  # a file's name has the second in it
    run(tmp_path, ["tensorboard"])
    code = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1], {"images": 0, "histograms": 0, "scalars": 0}).Reload()
image = found.Images("validation/attention/1")
events = {"loss": found.Scalars("loss"), "picture": image, "histogram": found.Histograms("boundary_score")}
steps = {name: [event.step for event in each] for name, each in events.items()}
print(json.dumps(steps | {"png": image[-1].encoded_image_string.hex()}))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "tensorboard")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert (read["loss"], read["picture"], read["histogram"]) == (STEPS, EVALUATED, EVALUATED)
    assert Image.open(io.BytesIO(bytes.fromhex(read["png"]))).size == (12, 8)


def test_xprof_reads_a_trace(tmp_path):
    watch = json.dumps({"trackers": [], "trace_from": 3, "trace_steps": 4})
    run(tmp_path, [], WATCH=watch)
    (trace,) = (tmp_path / "profile" / "plugins" / "profile" / "steps_3_to_6").glob("*.xplane.pb")
    code = """
import re, sys
from xprof.convert.raw_to_tool_data import xspace_to_tool_data
data, kind = xspace_to_tool_data([sys.argv[1]], "trace_viewer", {})
print(kind, *sorted(set(re.findall('"train ([0-9]+)"', data if isinstance(data, str) else data.decode()))))
"""
    done = subprocess.run([sys.executable, "-c", code, str(trace)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["application/json", "3", "4", "5", "6"]
