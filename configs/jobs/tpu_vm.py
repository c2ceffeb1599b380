"""Cloud TPU VMs: a spot slice of sixteen v5e chips. The workdir is on a share that all of its hosts mount."""

from ml_collections import ConfigDict

from configs.jobs import base


def get_config() -> ConfigDict:
    job = base.get_config()
    job.spot = True
    job.cloud.zone = "us-west4-a"
    job.python = ".venv/bin/python"
    job.setup = (
        "sudo mkdir -p /runs && (mountpoint -q /runs || sudo mount -t nfs 10.0.0.2:/runs /runs)",
        "test -x .venv/bin/python || python3 -m venv .venv",
        ".venv/bin/python -m pip install --quiet -r requirements.txt -r requirements-tpu.txt",
    )
    return job
