"""What the index of tar shards costs as it grows: seconds to open it, bytes on disk and in memory, microseconds to read a row anywhere.

    python -m benchmarks.index_scale
    python -m benchmarks.index_scale --rows=1000000 --shards=10,1000

Every shard is a link to one small tar file whose rows are indexed once, so 10 million rows need no disk, and what is read is in memory:
the figures are those of the index and of the code, not of a disk. A process of its own measures each number of shards.
"""

import multiprocessing
import os
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from bacl_jax.config import DataConfig
from bacl_jax.data import tar_index, tar_scan
from bacl_jax.data.sampler import Sampler
from bacl_jax.data.source import Part
from bacl_jax.data.tar_index import Shard
from bacl_jax.data.webdataset import TarShards

ROWS = flags.DEFINE_integer("rows", 10_000_000, "Rows of the index.", lower_bound=1)
SHARDS = flags.DEFINE_list("shards", ["10", "10000"], "Numbers of shards that they lie in.")
IN_THE_FILE = 1000  # rows of the tar file
BATCHES, BATCH = 20, 1024


def linked(folder: Path, rows: int, shards: int) -> tuple[list[str], str]:
    """(locations of the shards, their index)."""
    file = folder / "rows.tar"
    with tarfile.open(file, "w") as archive:
        for row in range(IN_THE_FILE):
            for suffix, content in ((".jpg", os.urandom(2000)), (".txt", f"caption {row}".encode())):
                member = tarfile.TarInfo(f"{row:04d}{suffix}")
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
    size = file.stat().st_size
    once = tar_scan.scan(str(file), file.name, size).rows
    (folder / "shards").mkdir()
    locations = [str(folder / "shards" / f"{shard:06d}.tar") for shard in range(shards)]
    for location in locations:
        os.symlink(file, location)
    each = np.resize(once, (rows // shards, 4))
    index = str(folder / "shards.index")
    tar_index.write(index, ((Shard(os.path.basename(location), size, len(each)), each) for location in locations))
    return locations, index


def memory() -> dict[str, float]:
    """MB of this process: resident, and those of them that are no file's and so cannot be given back."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {what: int(fields[name].split()[0]) * 1024 / 1e6 for what, name in (("resident", "VmRSS"), ("own", "RssAnon"))}


def measure(rows: int, shards: int) -> dict[str, float]:
    """The figures for an index of `rows` rows in `shards` shards, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        locations, index = linked(Path(folder), rows, shards)
        before, start = memory(), time.perf_counter()
        records = TarShards(locations, index)
        opened = time.perf_counter() - start
        sampler = Sampler(0, BATCH, [Part("", len(records))], DataConfig())
        spent = {"order": 0.0, "read": 0.0}
        for step in range(BATCHES):
            start = time.perf_counter()
            chosen = sampler.rows(step).tolist()
            spent["order"] += time.perf_counter() - start
            start = time.perf_counter()
            for row in chosen:
                records[row]
            spent["read"] += time.perf_counter() - start
        return {
            "rows": len(records),
            "shards": shards,
            "open, s": opened,
            "file, MB": os.path.getsize(index) / 1e6,
            **{f"{what}, MB": value - before[what] for what, value in memory().items()},
            "order, us a row": 1e6 * spent["order"] / BATCHES / BATCH,
            "read, us a row": 1e6 * spent["read"] / BATCHES / BATCH,
        }


def main(_: list[str]) -> None:
    found = []
    for shards in map(int, SHARDS.value):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(measure, (ROWS.value, shards)))
    table = Table(show_header=False)
    for name in found[0]:
        table.add_row(name, *(f"{each[name]:,.2f}" if isinstance(each[name], float) else f"{each[name]:,}" for each in found))
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
