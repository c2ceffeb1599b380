"""SkyPilot: two spot machines of eight H100, on whichever cloud has them; the workdir is in a bucket."""

from ml_collections import ConfigDict

from configs.jobs import base


def get_config() -> ConfigDict:
    job = base.get_config()
    job.nodes = 2
    job.spot = True
    job.python = ".venv/bin/python"
    job.setup = (
        "test -x .venv/bin/python || python3 -m venv .venv",
        ".venv/bin/python -m pip install --quiet -r requirements.txt -r requirements-cuda.txt",
    )
    job.sky.accelerators = "H100:8"
    job.sky.bucket = "gs://my-runs"
    return job
