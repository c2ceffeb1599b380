"""The part that all jobs share: one process on one node. The files beside it change what their first line says.

Every field can be set on the command line: `--job.nodes=4`, `--job.setup="('module load cuda',)"`. What an engine cannot honour it refuses.
"""

from ml_collections import ConfigDict

from bacl_jax.config import optional


def get_config() -> ConfigDict:
    job = ConfigDict()
    job.name = "bacl"  # by which the engine knows the job, and with which its logs are found and it is deleted
    job.nodes = 1  # machines; of a TPU slice: its hosts
    job.tasks_per_node = 1  # processes a machine: 1, or one a GPU
    job.gpus_per_task = 0  # GPUs of each process; 0: none
    job.cpus_per_task = optional(None)  # cores of each process; None: the engine's default
    job.memory_gib = optional(None)  # memory of each machine (gke: of each process); None: the engine's default
    job.hours = optional(None)  # time limit; a run that reaches it is saved and queued again. None: the partition's
    job.grace_seconds = 300  # between the signal to save and the end: longer than a step and a checkpoint take
    job.spot = False  # machines that the cloud may take back
    job.image = optional(None)  # container image with the code and its packages; slurm: for the plugin pyxis
    job.folder = optional(None)  # of the code where the job runs; None: the current one (slurm), the engine's own (others)
    job.python = "python"  # interpreter there
    job.environment = ()  # variables of the job, each NAME=value
    job.setup = ()  # lines of shell before the training, such as `source .venv/bin/activate`; the job ends where one fails
    job.slurm = slurm()
    job.cloud = cloud()
    job.gke = gke()
    job.sky = sky()
    return job


def slurm() -> ConfigDict:
    slurm = ConfigDict()
    slurm.partition = optional(None)  # None: the cluster's default
    slurm.account = optional(None)  # who pays; None: the user's default
    slurm.qos = optional(None)  # quality of service; None: the default
    slurm.constraint = optional(None)  # features that the nodes must have
    slurm.options = ()  # further options of sbatch, such as --exclusive
    return slurm


def cloud() -> ConfigDict:
    cloud = ConfigDict()
    cloud.project = optional(None)  # of Google Cloud; None: gcloud's own setting
    cloud.zone = optional(None)  # such as us-west4-a
    cloud.tpu = "v5litepod-16"  # accelerator type: generation and number of chips or cores, as gcloud lists them
    cloud.runtime = "v2-alpha-tpuv5-lite"  # version of the TPU VM's software, which belongs to the generation
    return cloud


def gke() -> ConfigDict:
    gke = ConfigDict()
    gke.cluster = optional(None)  # xpk: the cluster's name
    gke.namespace = "default"  # of Kubernetes
    gke.queue = optional(None)  # local queue of Kueue; None: no Kueue
    gke.claim = optional(None)  # volume claim that holds the workdir, read and written by many; xpk: the attached storage
    gke.mount = "/runs"  # where the claim is mounted
    gke.tpu = optional(None)  # label of the TPU nodes, such as tpu-v5-lite-podslice
    gke.topology = optional(None)  # of the slice, such as 4x4
    gke.chips = 4  # TPU chips a node
    gke.gpu = optional(None)  # label of the GPU nodes, such as nvidia-h100-80gb
    gke.restarts = 100  # after nodes were taken back or failed; a bad config is not tried again
    return gke


def sky() -> ConfigDict:
    sky = ConfigDict()
    sky.infra = optional(None)  # where: aws, gcp/us-central1, k8s, ...; None: the cheapest
    sky.accelerators = optional(None)  # a node's, such as H100:8 or tpu-v5litepod-8
    sky.bucket = optional(None)  # that holds the workdir, such as s3://my-runs
    sky.mount = "/runs"  # where the bucket is mounted
    return sky
