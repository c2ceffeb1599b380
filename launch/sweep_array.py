"""A sweep as a Slurm job array: task i runs point i with the command of the sweep, and `--report` makes the table of what they leave."""

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bacl_jax.config import ConfigError

SCRIPT = """#!/bin/bash
# {points} points of a sweep, written by launch.sweep. Submit it with what your cluster asks for:
#   sbatch --partition=... --gres=gpu:1 --time=... THIS_FILE
# and when it has ended, the command at its end with --report in place of --point.
#SBATCH --job-name=sweep
#SBATCH --array=0-{last}
#SBATCH --output={output}
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail
cd {cwd}
exec {command} --point="$SLURM_ARRAY_TASK_ID"
"""


def write(path: Path, points: int, workdir: Path, arguments: Sequence[str]) -> Path:
    """The script for the sweep that `arguments` (of this command line) describe. ConfigError where it or the workdir cannot be written."""
    output = str(workdir.resolve()).replace("%", "%%") + "/array_%a.txt"
    if "\n" in output:
        raise ConfigError(f"--workdir={str(workdir)!r}: must be of one line, for Slurm to write there")
    command = shlex.join([sys.executable, "-m", "launch.sweep", *_without_own_flag(arguments)])
    cwd = shlex.quote(str(Path.cwd()))
    text = SCRIPT.format(points=points, last=points - 1, output=shlex.quote(output), cwd=cwd, command=command)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--sbatch={path}: cannot be written, {error.filename}: {error.strerror}; take another file") from error
    return path


def _without_own_flag(arguments: Sequence[str]) -> Iterator[str]:
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-sbatch", "--sbatch"):
            next(rest, None)  # its value
        elif not re.match("--?sbatch=", argument):
            yield argument
