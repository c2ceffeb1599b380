"""Slurm: two nodes of eight GPUs, a process for each GPU, in the environment that `make quickstart` makes."""

from ml_collections import ConfigDict

from configs.jobs import base


def get_config() -> ConfigDict:
    job = base.get_config()
    job.nodes, job.tasks_per_node, job.gpus_per_task = 2, 8, 1
    job.cpus_per_task = 8
    job.memory_gib = 400
    job.hours = 24.0
    job.setup = ("source .venv/bin/activate",)
    job.slurm.partition = "gpu"
    return job
