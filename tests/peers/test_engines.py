"""What jobs are rendered to, read by what will read it: the types of Kubernetes and JobSet, and SkyPilot's own parser."""

import os
import subprocess
from pathlib import Path

import kubeflow_trainer_api.models as kubernetes
import pytest
import yaml
from test_jobs import files

ROOT = Path(__file__).parents[2]
GPUS = {"gke__tpu": None, "spot": False, "gke__gpu": "nvidia-h100-80gb", "gpus_per_task": 8}
READ = """
import sys, sky
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(task.num_nodes, resources.accelerators, resources.use_spot, list(task.storage_mounts), "launch.train" in task.run)
"""


@pytest.mark.parametrize(
    "changed", [{}, {"gke__queue": "users", "memory_gib": 100, "cpus_per_task": 8, "folder": "/app"}, GPUS], ids=["tpu", "queue", "gpu"]
)
def test_a_jobset_has_no_field_that_kubernetes_does_not_know(changed):
    written = yaml.safe_load(files("gke", **changed)["jobset.yaml"])
    assert kubernetes.JobsetV1alpha2JobSet.from_dict(written).to_dict() == written


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "2 {'H100': 8} True ['/runs'] True"),
        (
            {"cpus_per_task": 8, "memory_gib": 64, "sky__infra": "gcp", "image": "python:3.12", "nodes": 1},
            "1 {'H100': 8} True ['/runs'] True",
        ),
        ({"sky__accelerators": "tpu-v5litepod-8", "sky__infra": "gcp", "nodes": 1}, "1 {'tpu-v5litepod-8': 1} True ['/runs'] True"),
    ],
    ids=["gpus", "one", "tpu"],
)
def test_skypilot_reads_the_task(changed, said, tmp_path):
    (tmp_path / "task.yaml").write_text(files("sky", **changed)["task.yaml"])
    environment = os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    command = [ROOT / ".venv-sky" / "bin" / "python", "-c", READ, tmp_path / "task.yaml"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == said
