"""The code blocks of a document that are run, each as the comment above it says, in one folder from the first to the last.

    <!-- run -->             always
    <!-- run long -->        where minutes may pass
    <!-- run small -->       the same as `run`; a test gives its commands the flags of a tiny model
    <!-- run long small -->
    <!-- not run: why -->

A ```text block under <!-- prints --> is what the block before it prints; ... stands for anything.
"""

import dataclasses
import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINKED = ("bacl_jax", "benchmarks", "configs", "examples", "launch")  # what a command finds where it is started
LANGUAGES = ("bash", "python")
MARK = re.compile(r"(?P<run>run(?P<long> long)?(?P<small> small)?)|not run: \S.*")
BLOCK = re.compile(r"^(?:<!-- (?P<mark>.*?) -->\n+)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


class DocumentError(Exception):
    """A block that does not say whether it is run, or does not do what it should."""


@dataclasses.dataclass(frozen=True)
class Block:
    """where: document and line; prints: what it must print, None: anything."""

    where: str
    language: str
    code: str
    run: bool
    long: bool
    small: bool
    prints: str | None = None


def blocks(document: Path) -> list[Block]:
    """The bash and python blocks of a document, in its order. DocumentError for one without a mark that is known."""
    text, found = document.read_text(encoding="utf-8"), []
    for match in BLOCK.finditer(text):
        mark, language = match["mark"] or "", match["language"]
        where = f"{document.name}:{text.count(chr(10), 0, match.start('language')) + 1}"
        if language == "text" and mark == "prints" and found:
            found[-1] = dataclasses.replace(found[-1], prints=match["code"])
        if language not in LANGUAGES:
            continue
        said = MARK.fullmatch(mark)
        if said is None:
            raise DocumentError(f"{where}: {mark!r} above the block: must be run, run long, run small, run long small, or not run: why")
        how = {name: said[name] is not None for name in ("run", "long", "small")}
        found.append(Block(where=where, language=language, code=match["code"], **how))
    return found


def prepare(folder: Path) -> None:
    """Makes the folder one in which the documents' commands may be started, without a copy of the code."""
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)


def run(block: Block, folder: Path, small: Sequence[str] = (), python: str = sys.executable) -> str:
    """What the block printed on both streams. small: flags that each command with a --config gets where the block says so.

    DocumentError with the output where it ends with another code than 0 or prints something else than it should.
    """
    code = block.code
    if block.small and small:
        lines = code.replace("\\\n", " ").splitlines()
        code = "\n".join(f"{line} {shlex.join(small)}" if "--config=" in line else line for line in lines)
    command = ["bash", "-euo", "pipefail", "-c", code] if block.language == "bash" else [python, "-c", code]
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"JAX_PLATFORMS": "cpu"} | os.environ | {"PATH": path, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise DocumentError(f"{block.where}: exit code {done.returncode}\n{code}\n{done.stdout}")
    if block.prints is not None and not doctest.OutputChecker().check_output(block.prints, done.stdout, doctest.ELLIPSIS):
        raise DocumentError(f"{block.where}: must print\n{block.prints}\nand printed\n{done.stdout}")
    return done.stdout
