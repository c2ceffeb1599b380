"""The same job from Python: `submit` hands it to submitit, which requirements-slurm.txt brings.

from launch.job import describe
from launch.submit import submit

machines = {"nodes": 2, "tasks_per_node": 8, "gpus_per_task": 1, "hours": 24, "slurm": {"partition": "gpu"}}
handle = submit(describe(machines, config="configs/emoji_bacl.py", workdir="/shared/runs/bacl"), folder="runs/jobs/bacl")
handle.result()  # waits; True: the run is done
"""

import dataclasses
import importlib
import os
import subprocess
from pathlib import Path
from typing import Any

from bacl_jax.config import ConfigError
from launch.engines import Engine, check_fields
from launch.job import Job

SUBMITIT = Engine(files=(), actions={}, ignores=("spot", "image", "folder", "slurm.options"), needs=("hours",))
FOREVER = 10**6  # how often a job that reached its time limit goes back to the queue


@dataclasses.dataclass
class Training:
    """What each task of the job calls; it trains in a process of its own. submitit asks `checkpoint` before the job's end."""

    job: Job
    _process: "subprocess.Popen[bytes] | None" = dataclasses.field(default=None, init=False)

    def __call__(self) -> bool:
        """Whether the run is done. RuntimeError where the training ended with an error, whose output is in the task's log."""
        task = _submitit().JobEnvironment()
        place = [f"--coordinator={task.hostnames[0]}:{61440 + int(task.raw_job_id) % 4096}", f"--processes={task.num_tasks}"]
        command = self.job.train(*(([*place, f"--process={task.global_rank}"]) if task.num_tasks > 1 else []))
        # submitit's own signal comes to all processes of a task
        self._process = subprocess.Popen(["env", f"--ignore-signal={task.USR_SIG}", *command], env=self._environment(task.local_rank))
        if code := self._process.wait():
            raise RuntimeError(f"process {task.global_rank} of the run ended with exit code {code}")
        return (Path(self.job.workdir) / "done").exists()

    def checkpoint(self) -> Any:
        """Has the training save and end, in all tasks; what submitit is to start again."""
        assert self._process is not None
        self._process.terminate()
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)  # the call above is inside wait(), which holds a lock
        return _submitit().helpers.DelayedSubmission(Training(self.job))

    def _environment(self, local_rank: int) -> dict[str, str]:
        variables = os.environ | dict(pair.split("=", 1) for pair in self.job.environment)
        count = self.job.gpus_per_task
        if count and self.job.tasks_per_node > 1:  # those of the node; each process takes its own
            gpus = variables["CUDA_VISIBLE_DEVICES"].split(",")
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[local_rank * count : (local_rank + 1) * count])
        return variables


def submit(job: Job, folder: str | os.PathLike[str]) -> Any:
    """Queues the job, whose logs go to `folder`, and returns submitit's handle. The lines of job.setup run before the tasks.

    ConfigError where submitit is not installed or has no place for a field of the job.
    """
    check_fields("submitit", SUBMITIT, job)
    executor = _submitit().SlurmExecutor(folder=folder, max_num_timeout=FOREVER, python=job.python)
    slurm = job.slurm
    settings = {
        "job_name": job.name,
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "gpus_per_node": job.gpus_per_task * job.tasks_per_node or None,
        "cpus_per_task": job.cpus_per_task,
        "mem": None if job.memory_gib is None else f"{job.memory_gib}G",
        "time": job.minutes,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "signal_delay_s": job.grace_seconds,
        "setup": list(job.setup) or None,
    }
    executor.update_parameters(**{name: value for name, value in settings.items() if value is not None})
    return executor.submit(Training(job))


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise ConfigError("submitit is not installed: pip install -r requirements-slurm.txt") from None
