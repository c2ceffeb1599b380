"""`make bench`: our side and the peer's of each row, in processes that take turns. Writes benchmarks/results.json, prints a table.

python -m benchmarks.run --rows=train_step,topk
"""

import argparse
import contextlib
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import synthetic
from benchmarks import bacl_over_infonce
from benchmarks.cases import ROWS, Row, Side


class Process:
    """One side of a row, alive between its turns."""

    def __init__(self, side: Side, peers: str, extra: dict[str, Any]):
        self.side = side
        python = peers if side.program == "peers" else sys.executable
        self.command = [python, "-m", f"benchmarks.{side.program}", side.case, json.dumps(side.arguments | extra)]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.figures = self._answer()
        self.turns: list[dict[str, Any]] = []

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        raise RuntimeError(f"{' '.join(self.command)} ended with code {self.process.wait()}, see its output above")

    def turn(self, calls: int) -> None:
        assert self.process.stdin is not None
        print(calls, file=self.process.stdin, flush=True)
        self.turns.append(self._answer())

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.figures |= self._answer()
        self.process.wait()

    def milliseconds(self, kind: str = "wall_ms") -> float:
        return statistics.median(value for turn in self.turns for value in turn[kind])


def measure(row: Row, peers: str, extra: dict[str, Any]) -> dict[str, Any]:
    """The row's result. The sides start one after the other, then take turns.

    peers: Python of their environment. extra: arguments of both.
    """
    ours, peer = (Process(side, peers, extra) for side in (row.ours, row.peer))
    for _ in range(row.rounds):
        for process in (ours, peer):
            process.turn(row.calls)
    for process in (ours, peer):
        process.end()
    others = statistics.median(turn["others_cores"] for process in (ours, peer) for turn in process.turns)
    return result(row, ours, peer) | {"others_cores": round(others, 2)}


def result(row: Row, ours: Any, peer: Any) -> dict[str, Any]:
    """Medians over all turns and their ratios. ours, peer: what has `milliseconds` and `figures`."""
    memory = [None if which.memory is None else side.figures[which.memory] for side, which in ((ours, row.ours), (peer, row.peer))]
    return {
        "name": row.name,
        "ours_ms": round(ours.milliseconds(), 2),
        "peer_ms": round(peer.milliseconds(), 2),
        "time_ratio": ratio(ours.milliseconds(), peer.milliseconds()),
        "ours_mib": rounded(memory[0]),
        "peer_mib": rounded(memory[1]),
        "memory_ratio": ratio(memory[0], memory[1]),
        "peer": row.peer_name,
        "ours_figures": ours.figures,
        "peer_figures": peer.figures,
        "ours_cpu_ms": round(ours.milliseconds("cpu_ms"), 2),
        "peer_cpu_ms": round(peer.milliseconds("cpu_ms"), 2),
        **rates("ours", ours),
        **rates("peer", peer),
    }


def rates(name: str, side: Any) -> dict[str, float]:
    """Of a side that reads pairs: how many a second, and its memory for each worker."""
    if "pairs" not in side.figures:
        return {}
    return {
        f"{name}_pairs_per_s": round(1e3 * side.figures["pairs"] / side.milliseconds(), 1),
        f"{name}_mib_per_worker": round(side.figures["family_mib"] / side.figures["workers"], 1),
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def ratio(ours: float | None, peer: float | None) -> float | None:
    """ours / peer; None where one of them has no figure, or the peer 0."""
    return round(ours / peer, 3) if ours is not None and peer else None


@contextlib.contextmanager
def inputs(row: Row, peers: str, made: str | None) -> Iterator[dict[str, Any]]:
    """What a row reads, as arguments of its sides. made: a folder in which benchmarks.photos has written before."""
    if row.name.startswith("pipeline"):
        with pictures() as folder:
            yield {"folder": folder}
    elif row.name.startswith("shards"):
        with tempfile.TemporaryDirectory() if made is None else contextlib.nullcontext(made) as folder:
            if not Path(folder, "many").exists():
                subprocess.run([peers, "-m", "benchmarks.photos", folder], check=True)
            yield {"shards": folder}
    else:
        yield {}


@contextlib.contextmanager
def pictures() -> Iterator[str]:
    """A folder of 256 PNG pictures of 128 pixels a side with captions, and its manifest pairs.csv."""
    with tempfile.TemporaryDirectory() as folder:
        source = synthetic.load(DataConfig(image_size=64), holdout=0).train
        with open(Path(folder, "pairs.csv"), "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("image", "caption"))
            for i in range(len(source)):
                Image.fromarray(source[i].image).save(Path(folder, f"{i}.png"))
                table.writerow((f"{i}.png", source[i].caption))
        yield folder


def chosen(names: list[str]) -> list[Row]:
    """The rows of these names or beginnings; ConfigError for a name that is none's."""
    for name in names:
        if not any(row.name.startswith(name) for row in ROWS):
            raise ConfigError(f"--rows={name}: no such row; there are {', '.join(row.name for row in ROWS)}")
    return [row for row in ROWS if not names or row.name.startswith(tuple(names))]


def write(results: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Adds results to a file of them, in the order of ROWS; one of the same name is replaced."""
    kept = {one["name"]: one for one in (json.loads(path.read_text()) if path.exists() else [])}
    kept |= {one["name"]: one for one in results}
    ordered = [kept[row.name] for row in ROWS if row.name in kept]
    path.write_text(json.dumps(ordered, indent=1) + "\n")
    return ordered


def table(results: list[dict[str, Any]]) -> Table:
    columns = ("ours_ms", "peer_ms", "time_ratio", "ours_mib", "peer_mib", "memory_ratio", "others_cores", "peer")
    shown = Table("name", *columns, title="others_cores above 0.2: the machine was disturbed, do not trust the times")
    for one in results:
        shown.add_row(one["name"], *(str(one.get(column, "")) for column in columns))
    return shown


def counted(row: Row) -> dict[str, Any]:
    """flops_ratio of the ViT-B/16 config as it is shipped, and with a suffix those of frozen towers and of full shares."""
    if row.name != "bacl_over_infonce":
        return {}
    return {one["name"].replace(row.name, "flops_ratio"): round(one["flops_ratio"], 3) for one in bacl_over_infonce.rows()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default="", help="rows, by name or by its beginning, with commas; none: all")
    parser.add_argument("--peers", default=".venv-bench/bin/python", help="Python of the peers' environment (make .venv-bench/installed)")
    parser.add_argument(
        "--shards", help="folder for the tar shards, made if they are not there; none: a new one that is removed, for each row"
    )
    parser.add_argument("--out", default="benchmarks/results.json", help="where the results go; other rows that are there stay")
    options = parser.parse_args()
    print(f"GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '')} for both sides")
    try:
        rows = chosen([name for name in options.rows.split(",") if name])
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    results = []
    for row in rows:
        with inputs(row, options.peers, options.shards) as extra:
            results.append(measure(row, options.peers, extra) | counted(row))
        write(results, Path(options.out))
        print(json.dumps(results[-1]), flush=True)
    Console(width=160).print(table(results))


if __name__ == "__main__":
    main()
