"""A job: what is trained on which machines, in the words of no scheduler. `launch/engines.py` renders it for each of them.

The fields of a site are in a file as `configs/jobs/base.py`, which has a comment on each; the dataclasses here say what they may hold.
"""

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from bacl_jax.config import ConfigError
from bacl_jax.settings import NonNegative, Positive, PositiveFloat, Range, read

PREEMPTED = 75  # exit code of a saved run where the engine takes 0 for the end: EX_TEMPFAIL, "try again"


@dataclasses.dataclass(frozen=True)
class Matching:
    """Texts that match `pattern` as a whole; `what` says it in words."""

    pattern: str
    what: str

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.what


Name = Annotated[str, Matching("[a-z]([a-z0-9-]{0,38}[a-z0-9])?", "of at most 40 of a-z, 0-9 and -, a letter first and no - last")]
Variable = Annotated[str, Matching(r"[A-Za-z_]\w*=[^\n]*", "of the form NAME=value")]
Line = Annotated[str, Matching(r"[^\n]+", "of one line")]
Absolute = Annotated[str, Matching(r"/[^\n:]*", "that begins with /")]
Topology = Annotated[str, Matching(r"\d+x\d+(x\d+)?", "such as 4x4 or 2x2x4")]


@dataclasses.dataclass(frozen=True)
class Slurm:
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    options: tuple[Line, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cloud:
    project: str | None = None
    zone: str | None = None
    tpu: str = "v5litepod-16"
    runtime: str = "v2-alpha-tpuv5-lite"


@dataclasses.dataclass(frozen=True)
class Gke:
    cluster: str | None = None
    namespace: Name = "default"
    queue: str | None = None
    claim: str | None = None
    mount: Absolute = "/runs"
    tpu: str | None = None
    topology: Topology | None = None
    chips: Positive = 4
    gpu: str | None = None
    restarts: NonNegative = 100


@dataclasses.dataclass(frozen=True)
class Sky:
    infra: str | None = None
    accelerators: str | None = None
    bucket: str | None = None
    mount: Absolute = "/runs"


@dataclasses.dataclass(frozen=True)
class Machines:
    """What a job runs on, and how the training is started there."""

    name: Name = "bacl"
    nodes: Positive = 1
    tasks_per_node: Positive = 1
    gpus_per_task: NonNegative = 0
    cpus_per_task: Positive | None = None
    memory_gib: Positive | None = None
    hours: PositiveFloat | None = None
    grace_seconds: Annotated[int, Range(1, 65535)] = 300
    spot: bool = False
    image: str | None = None
    folder: str | None = None
    python: str = "python"
    environment: tuple[Variable, ...] = ()
    setup: tuple[Line, ...] = ()
    slurm: Slurm = Slurm()
    cloud: Cloud = Cloud()
    gke: Gke = Gke()
    sky: Sky = Sky()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(Machines):
    """config, workdir, overrides: what launch.train is given; an override is "train.steps=5"."""

    config: str
    workdir: str
    overrides: tuple[str, ...] = ()

    @property
    def processes(self) -> int:
        return self.nodes * self.tasks_per_node

    @property
    def minutes(self) -> int | None:
        return None if self.hours is None else max(1, round(60 * self.hours))

    @property
    def exports(self) -> list[str]:
        """The environment as lines of a shell script."""
        pairs = [pair.split("=", 1) for pair in self.environment]
        return [f"export {name}={shlex.quote(value)}" for name, value in pairs]

    @property
    def preparation(self) -> list[str]:
        """What a shell does before the training: the environment, then `setup`."""
        return [*self.exports, *self.setup]

    def train(self, *flags: str) -> list[str]:
        """The command that each process is, without its place among the others."""
        overrides = [f"--config.{override}" for override in self.overrides]
        return [self.python, "-m", "launch.train", f"--config={self.config}", f"--workdir={self.workdir}", *overrides, *flags]


def describe(machines: Mapping[str, Any], *, config: str, workdir: str, overrides: Sequence[str] = ()) -> Job:
    """The job of these settings, nested as in `configs/jobs/base.py`; one that is missing keeps its default.

    ConfigError where a setting is unknown, of the wrong type or out of range, or where two contradict each other.
    """
    job = Job(**vars(read(Machines, machines, "job")), config=config, workdir=workdir, overrides=tuple(overrides))
    if not job.workdir.startswith("/") or "\n" in job.workdir:
        raise ConfigError(f"--workdir={job.workdir!r}: must begin with /, since the job starts elsewhere: --workdir=$PWD/runs/bacl")
    if job.hours is not None and 3600 * job.hours <= job.grace_seconds:
        raise ConfigError(
            f"job.grace_seconds = {job.grace_seconds}: must be less than job.hours = {job.hours:g}, else each start ends at once; "
            "set --job.grace_seconds or --job.hours"
        )
    if job.gke.tpu and job.gke.gpu:
        raise ConfigError(f"job.gke.gpu = {job.gke.gpu!r}: a node has GPUs or TPUs; set one of --job.gke.gpu and --job.gke.tpu to None")
    if job.gke.topology and not job.gke.tpu:
        raise ConfigError(f"job.gke.topology = {job.gke.topology!r}: is of a TPU slice; set --job.gke.tpu, or leave it out")
    if job.gke.tpu and job.gpus_per_task:
        raise ConfigError(f"job.gpus_per_task = {job.gpus_per_task}: a TPU's node has no GPUs; set --job.gpus_per_task=0")
    if job.gke.gpu and not job.gpus_per_task:
        raise ConfigError(f"job.gpus_per_task = 0: a process gets none of the node's {job.gke.gpu}; set --job.gpus_per_task")
    if job.gke.tpu:
        chips = math.prod(map(int, (job.gke.topology or "0").split("x")))
        if chips != job.nodes * job.gke.chips:
            raise ConfigError(
                f"job.gke.topology = {job.gke.topology!r} has {chips} chips, and job.nodes x job.gke.chips = {job.nodes} x {job.gke.chips} "
                "must be as many; set --job.nodes to the number of hosts of the slice"
            )
    return job
