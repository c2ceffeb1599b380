"""A sweep as a Slurm job array: task i runs point i with the command of the sweep, and `--report` makes the table of what they leave."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = """#!/bin/bash
# {points} points of a sweep, written by launch.sweep. Submit it with what your cluster asks for:
#   sbatch --partition=... --gres=gpu:1 --time=... {path}
# and when it has ended: {report}
#SBATCH --job-name="{name}"
#SBATCH --array=0-{last}
#SBATCH --output="{folder}/array_%a.txt"
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail
cd {cwd}
exec {command} --point="$SLURM_ARRAY_TASK_ID"
"""


def write(path: Path, points: int, workdir: Path, arguments: Sequence[str]) -> Path:
    """The script for the sweep that `arguments` (of this command line, without the script's own flag) describe."""
    workdir.mkdir(parents=True, exist_ok=True)
    arguments = [argument for argument in arguments if not argument.lstrip("-").startswith("sbatch=")]
    command = shlex.join([sys.executable, "-m", "launch.sweep", *arguments])
    text = SCRIPT.format(
        points=points,
        path=shlex.quote(str(path)),
        report=f"{command} --report",
        name=f"sweep-{workdir.name}",
        last=points - 1,
        folder=workdir.resolve(),
        cwd=shlex.quote(str(Path.cwd())),
        command=command,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
