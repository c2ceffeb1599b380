"""The same slice through xpk, which asks GKE for it by its type."""

from ml_collections import ConfigDict

from configs.jobs import base


def get_config() -> ConfigDict:
    job = base.get_config()
    job.spot = True
    job.image = "us-docker.pkg.dev/my-project/runs/bacl_jax:1"
    job.cloud.zone = "us-west4-a"
    job.gke.cluster, job.gke.claim = "pods", "runs"
    return job
