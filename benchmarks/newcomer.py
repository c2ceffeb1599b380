"""How long a newcomer waits: from a fresh clone and an empty home to the first result, to one on data of their own, and to a sweep's plot.

    python -m benchmarks.newcomer --out=newcomer.json

Clones this checkout's last commit into a new folder, with a home folder, caches and environment of its own; only the package index is
what it was. Takes the commands from README.md and docs/tutorial.md, runs them in full, and prints a line for each step with its seconds.
Takes ten minutes or more of all cores. --keep leaves the folder where it is; --steps: of (quickstart, tutorial, sweep), all by default.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from absl import app, flags

from benchmarks.document import ROOT, blocks

SWEEP = (  # BNS and CLA, each alone, both, neither, on three seeds: short runs, without what takes long at their end
    "python -m launch.sweep --config=configs/emoji_bacl.py --sweep=configs/sweeps/ablation.py --workdir=runs/sweep --config.train.steps=60 "
    "--config.eval.tasks=\"('retrieval','halftrue')\" --config.eval.plots=False"
)
FIRST_RESULT = {  # step -> a file that is there when it has given something to look at
    "quickstart": "runs/quickstart/report/index.html",
    "tutorial": "runs/mine/report/index.html",
    "sweep": "runs/sweep/plots/parallel.png",
}
STEPS = flags.DEFINE_list("steps", list(FIRST_RESULT), "Steps, in this order.")
OUT = flags.DEFINE_string("out", "benchmarks/newcomer.json", "File for the seconds of each step.")
KEEP = flags.DEFINE_bool("keep", False, "Whether the clone is kept.")


def environment(home: Path, clone: Path) -> dict[str, str]:
    """What a new user's shell has: no caches, no settings of this project, the clone's environment active once it is made."""
    kept = ("LANG", "TERM", "TMPDIR", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    path = f"{clone / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    found = {name: os.environ[name] for name in kept if name in os.environ}
    return found | {"HOME": str(home), "PATH": path, "PIP_NO_CACHE_DIR": "1", "JAX_PLATFORMS": "cpu"}


def commands(step: str, clone: Path) -> Iterable[list[str]]:
    """The commands of a step. Those of the tutorial up to its report: what it asks a finished model comes after the result."""
    if step == "quickstart":
        return [["make", "quickstart"]]
    if step == "sweep":
        return [["bash", "-euo", "pipefail", "-c", SWEEP]]
    shells = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": ["python", "-c"]}
    return [[*shells[block.language], block.code] for block in blocks(clone / "docs" / "tutorial.md") if block.run]


def walk(step: str, clone: Path, home: Path) -> float:
    """Runs a step and returns the seconds until its result is there. RuntimeError where it never is."""
    began = time.monotonic()
    for command in commands(step, clone):
        subprocess.run(command, cwd=clone, env=environment(home, clone), check=True)
        if (clone / FIRST_RESULT[step]).exists():
            return time.monotonic() - began
    raise RuntimeError(f"{step}: its commands ended without {FIRST_RESULT[step]}")


def main(argv: list[str]) -> None:
    del argv
    unknown = sorted(set(STEPS.value) - set(FIRST_RESULT))
    if unknown:
        raise app.UsageError(f"--steps={','.join(unknown)}: must be of {', '.join(FIRST_RESULT)}")
    folder = Path(tempfile.mkdtemp(prefix="bacl_jax-newcomer-"))
    clone, home, seconds = folder / "bacl_jax", folder / "home", {}
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", "--no-local", ROOT.as_uri(), str(clone)], check=True)
    for step in STEPS.value:
        seconds[step] = round(walk(step, clone, home), 1)
        Path(OUT.value).write_text(json.dumps({"cores": os.cpu_count(), "seconds": seconds}, indent=1) + "\n")
        print(f"{step}: {FIRST_RESULT[step]} after {seconds[step]:.0f} s", flush=True)
    print(f"from the clone to the last of them: {sum(seconds.values()):.0f} s")
    if KEEP.value:
        print(folder)
    else:
        shutil.rmtree(folder)


if __name__ == "__main__":
    app.run(main)
