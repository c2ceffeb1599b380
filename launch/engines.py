"""What each engine is given for a job: files, rendered from the templates beside this module, and commands of its own tools.

All of them end in `python -m launch.train`; where there are several processes it gets --coordinator, --processes and --process from what
the engine tells each of them. Nothing is scheduled or watched here.
"""

import dataclasses
import functools
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from bacl_jax.config import ConfigError
from bacl_jax.settings import leaves
from launch.job import PREEMPTED, Job, Machines


@dataclasses.dataclass(frozen=True)
class Engine:
    """files: templates. actions: name -> commands, run one after another, which may name the folder of the files as {{ here }}.

    ignores: fields of a job that it has no place for; needs: those that may not be None.
    """

    files: tuple[str, ...]
    actions: Mapping[str, tuple[str, ...]]
    ignores: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """Files to write, path -> text, and commands to run after that."""

    files: dict[Path, str]
    commands: list[list[str]]

    def __str__(self) -> str:
        parts = [f"# --- {path}\n{text}" for path, text in self.files.items()]
        return "\n".join([*parts, "# --- commands", *map(shlex.join, self.commands)])

    def run(self) -> int:
        """Writes the files and runs the commands; the exit code of the first that fails, else 0. ConfigError where one is not installed."""
        for command in self.commands:
            if shutil.which(command[0]) is None:
                raise ConfigError(f"{command[0]} is not installed here: install it, or see with --dry_run what would run")
        for path, text in self.files.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            except OSError as error:
                raise ConfigError(
                    f"--files={path.parent}: cannot write {path.name} there: {error.strerror}; take another folder"
                ) from error
        codes = (subprocess.run(command, check=False).returncode for command in self.commands)
        return next((code for code in codes if code), 0)


QUEUE = "gcloud compute tpus queued-resources"
VM = "gcloud compute tpus tpu-vm"
START = (
    "mkdir -p {name} && tar -xzf {name}.tar.gz -C {name} && sudo systemd-run --collect --unit={name} --uid=$USER "
    "--property=TimeoutStopSec={grace} bash $HOME/worker.sh"
)
LOGS = (
    "kubectl logs --follow --tail=100 --namespace={{ job.gke.namespace }} "
    "--selector=jobset.sigs.k8s.io/jobset-name={{ job.name }},batch.kubernetes.io/job-completion-index=0"
)
ENGINES = {
    "slurm": Engine(
        files=("slurm/job.sbatch",),
        actions={
            "check": ("sbatch --test-only {{ here }}/job.sbatch",),
            "submit": ("mkdir -p {{ job.workdir | q }}", "sbatch {{ here }}/job.sbatch"),
            "status": ("squeue --me --name={{ job.name }}",),
            "logs": ("tail -n 100 -F {{ job.workdir | q }}/slurm.txt",),
            "delete": ("scancel --me --name={{ job.name }}",),
        },
        ignores=("spot",),
    ),
    "tpu_vm": Engine(
        files=("tpu_vm/create.sh", "tpu_vm/worker.sh"),
        actions={
            "submit": (
                "git archive --output={{ here }}/{{ job.name }}.tar.gz HEAD",
                "bash {{ here }}/create.sh",
                VM + " scp {{ here }}/{{ job.name }}.tar.gz {{ here }}/worker.sh {{ job.name }}: --worker=all {{ where }}",
                VM + " ssh {{ job.name }} --worker=all {{ where }} --command={{ start | q }}",
            ),
            "status": (QUEUE + " describe {{ job.name }} {{ where }}",),
            "logs": (
                VM + " ssh {{ job.name }} --worker=0 {{ where }} --command='sudo journalctl --follow --lines=100 --unit={{ job.name }}'",
            ),
            "delete": (QUEUE + " delete {{ job.name }} --force --quiet {{ where }}",),
        },
        ignores=("nodes", "tasks_per_node", "gpus_per_task", "cpus_per_task", "memory_gib", "hours", "image", "folder"),
        needs=("cloud.zone",),
    ),
    "gke": Engine(
        files=("gke/jobset.yaml",),
        actions={
            "check": ("kubectl apply --dry-run=server --filename={{ here }}/jobset.yaml",),
            "submit": ("kubectl apply --filename={{ here }}/jobset.yaml",),
            "status": ("kubectl get jobset {{ job.name }} --namespace={{ job.gke.namespace }}",),
            "logs": (LOGS,),
            "delete": ("kubectl delete jobset {{ job.name }} --namespace={{ job.gke.namespace }}",),
        },
        ignores=("tasks_per_node", "hours"),
        needs=("image", "gke.claim"),
    ),
    "xpk": Engine(
        files=("gke/xpk.sh",),
        actions={
            "submit": ("bash {{ here }}/xpk.sh",),
            "status": ("xpk workload list --cluster={{ job.gke.cluster | q }} {{ where }}",),
            "logs": (LOGS,),
            "delete": ("xpk workload delete --workload={{ job.name }} --cluster={{ job.gke.cluster | q }} {{ where }}",),
        },
        ignores=("nodes", "tasks_per_node", "gpus_per_task", "cpus_per_task", "memory_gib", "hours"),
        needs=("image", "gke.cluster", "gke.claim", "cloud.zone"),
    ),
    "sky": Engine(
        files=("sky/task.yaml",),
        actions={
            "check": ("sky launch --dryrun --yes {{ here }}/task.yaml",),
            "submit": ("sky jobs launch --yes --detach-run --name={{ job.name }} {{ here }}/task.yaml",),
            "status": ("sky jobs queue",),
            "logs": ("sky jobs logs --follow --name={{ job.name }}",),
            "delete": ("sky jobs cancel --yes --name={{ job.name }}",),
        },
        ignores=("tasks_per_node", "gpus_per_task", "hours", "grace_seconds", "folder"),
    ),
}


def plan(engine: str, action: str, job: Job, folder: Path) -> Plan:
    """What `action` does with the job; its files are for `folder`. ConfigError where the engine lacks the action or a place for a field."""
    if engine not in ENGINES:
        raise ConfigError(f"--engine={engine}: must be one of {', '.join(ENGINES)}")
    found = ENGINES[engine]
    if action not in found.actions:
        raise ConfigError(f"--action={action}: must be one of {', '.join(found.actions)} with --engine={engine}")
    check_fields(engine, found, job)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("launch", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        comment_start_string="<#",  # "{#" is bash's ${#array[@]}
        comment_end_string="#>",
    )
    environment.filters |= {
        "q": lambda value: shlex.quote(str(value)),
        "json": functools.partial(json.dumps, ensure_ascii=False),  # YAML knows no pairs of surrogates
        "one_word": _one_word,
    }
    context = _context(job, folder)
    needed = found.files if action in ("check", "submit") else ()
    files = {folder / Path(name).name: environment.get_template(name).render(context) + "\n" for name in needed}
    return Plan(files, [shlex.split(environment.from_string(command).render(context)) for command in found.actions[action]])


def _one_word(text: str) -> str:
    """A text of several lines as a word of bash on one line."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"$'{escaped}'"


def _context(job: Job, folder: Path) -> dict[str, Any]:
    project = [] if job.cloud.project is None else [f"--project={job.cloud.project}"]
    return {
        "job": job,
        "here": shlex.quote(str(folder)),
        "root": job.folder or str(Path.cwd()),
        "where": shlex.join([f"--zone={job.cloud.zone}", *project]),
        "start": START.format(name=job.name, grace=job.grace_seconds),
        "train": shlex.join(job.train()),
        "train_or_75": shlex.join(job.train(f"--preempted_code={PREEMPTED}")),
        "preempted": PREEMPTED,
    }


def check_fields(name: str, engine: Engine, job: Job) -> None:
    """ConfigError where the job lacks what the engine needs, or sets what it has no place for."""
    values, defaults = dict(leaves(job)), dict(leaves(Machines()))
    for field in engine.ignores:
        if values[field] != defaults[field]:
            found = f"job.{field} = {values[field]!r}: {name} has no place for it"
            raise ConfigError(f"{found}: leave it at {defaults[field]!r}, or take {_others(field)}")
    for field in engine.needs:
        if values[field] is None:
            raise ConfigError(f"job.{field} = None: {name} needs it; set it with --job.{field}=...")
    mounts = {"gke": job.gke.mount, "sky": job.sky.mount if job.sky.bucket else "/"}
    if name in mounts and not Path(os.path.normpath(job.workdir)).is_relative_to(mounts[name]):
        raise ConfigError(f"--workdir={job.workdir}: must be under job.{name}.mount = {mounts[name]!r}, which outlives the machines")


def _others(field: str) -> str:
    return " or ".join(f"--engine={name}" for name, engine in ENGINES.items() if field not in engine.ignores)
