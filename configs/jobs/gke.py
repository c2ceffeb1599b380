"""Kubernetes: a slice of sixteen v5e chips, four nodes of four, on spot machines, as a JobSet."""

from ml_collections import ConfigDict

from configs.jobs import base


def get_config() -> ConfigDict:
    job = base.get_config()
    job.nodes = 4
    job.spot = True
    job.image = "us-docker.pkg.dev/my-project/runs/bacl_jax:1"
    job.gke.claim = "runs"
    job.gke.tpu, job.gke.topology = "tpu-v5-lite-podslice", "4x4"
    return job
