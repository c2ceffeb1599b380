"""After SIGKILL and on other numbers of hosts every source gives the samples of an uninterrupted run, 1,000 of them."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bacl_jax.data import convert, tar_index
from bacl_jax.data.webdataset import TarShards

ROOT = Path(__file__).parents[2]
BATCH, ROWS = 12, 510  # a batch divides over 1, 2, 3 and 4 hosts
STEPS = {"4": 20, "2": 50, "3": 90, "1": 90}  # hosts -> where they stop; 1: the run without interruption; 90 batches are 1,080 samples
NAMES = ("array_record", "block", "emoji", "manifest", "mixture", "mixture_block", "parquet", "webdataset")


def encoded(row):
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (row % 256, row // 256, 7)).save(file, "PNG")
    return file.getvalue()


def write_shards(folder):
    folder.mkdir()
    for shard in range(5):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for row in range(shard * ROWS // 5, (shard + 1) * ROWS // 5):
                for suffix, content in (("png", encoded(row)), ("txt", f"caption {row}".encode())):
                    if (row, suffix) == (77, "png"):
                        content = content[:40]  # one bad picture, which is replaced
                    info = tarfile.TarInfo(f"{row:05d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    tar_index.build(str(folder), None, workers=1, on_error="raise")


def write_parquet(folder):
    folder.mkdir()
    for part in range(3):
        rows = range(part * ROWS // 3, (part + 1) * ROWS // 3)
        table = pa.table({"image": [encoded(row) for row in rows], "caption": [f"caption {row}" for row in rows]})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=50)


def write_manifest(folder):
    folder.mkdir()
    lines = ["image,caption"]
    for row in range(60):
        (folder / f"{row}.png").write_bytes(encoded(row))
        lines.append(f"{row}.png,caption {row}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """A folder with a config file for each data set."""
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder / "shards")
    write_parquet(folder / "tables")
    write_manifest(folder / "pictures")
    convert.write(TarShards(str(folder / "shards")), folder / "records")
    places = {
        "webdataset": f"{folder}/shards",
        "parquet": f"{folder}/tables",
        "array_record": f"{folder}/records",
        "manifest": f"{folder}/pictures/pairs.csv",
    }
    kinds = {name: {"kind": name, "path": place, "validation_rows": 5} for name, place in places.items()}
    block = {"shuffle": "block", "block_rows": 20, "block_window": 50, "block_lanes": 4}
    sources = [{**kinds["webdataset"], "weight": 2.0}, {"kind": "emoji"}, {**kinds["parquet"], "weight": 0.5}, kinds["manifest"]]
    kinds |= {
        "emoji": {"kind": "emoji"},
        "block": kinds["webdataset"] | block,
        "mixture": {"kind": "mixture", "sources": sources},
        "mixture_block": {"kind": "mixture", "sources": sources[::-1]} | block,
    }
    assert tuple(sorted(kinds)) == NAMES
    shared = {"on_error": "skip", "max_error_share": 1.0, "image_size": 8, "threads": 1, "prefetch": 2}
    (folder / "configs").mkdir()
    for name, settings in kinds.items():
        (folder / "configs" / f"{name}.json").write_text(json.dumps({"data": shared | settings, "train": {"batch_size": BATCH}}))
    return folder / "configs"


def read(configs, out, hosts, first, end, *, kill):
    """Lines of all hosts until they have ended, or until they were killed somewhere on their way; name -> step -> rows and digests."""
    files = [out / f"{first}-{host}-of-{hosts}" for host in range(hosts)]
    program = str(ROOT / "tests/data_run.py")
    running = [
        subprocess.Popen(
            [sys.executable, program, str(configs), str(file), *map(str, (hosts, host, first, end))],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for host, file in enumerate(files)
    ]
    if kill:
        wait_for(files, (kill - first) * len(NAMES), running)
        for process in running:
            process.send_signal(signal.SIGKILL)
    codes = [process.wait(timeout=600) for process in running]
    assert set(codes) <= ({0, -signal.SIGKILL} if kill else {0})
    return together([lines_of(file) for file in files])


def wait_for(files, lines, running):
    before = time.monotonic()
    while any(not file.exists() or len(file.read_text().splitlines()) < lines for file in files):
        assert time.monotonic() - before < 600
        assert all(process.poll() in (None, 0) for process in running)
        time.sleep(0.05)


def lines_of(file):
    return {(name, step): list(zip(rows, digests, strict=True)) for name, step, rows, digests in map(json.loads, whole_lines(file))}


def whole_lines(file):
    return [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def together(hosts):
    """The batches that all hosts have read their part of, as far as they follow each other."""
    both = set(hosts[0]).intersection(*hosts[1:])
    return {key: [row for host in hosts for row in host[key]] for key in both}


def next_step(found, first):
    """The first step that some data set was not read at."""
    return next(step for step in range(first, STEPS["1"] + 2) if any((name, step) not in found for name in NAMES))


@pytest.fixture(scope="module")
def runs(configs, tmp_path_factory):
    """(batches without interruption, batches over three lives: 4 hosts killed, 2 hosts killed, 3 hosts until the end, where they began)."""
    out, found, begins, first = tmp_path_factory.mktemp("out"), {}, [], 0
    for hosts, kill in ((4, STEPS["4"]), (2, STEPS["2"]), (3, None)):
        begins.append(first)
        part = read(configs, out, hosts, first, STEPS["3"], kill=kill)
        following = next_step(part, first)
        found |= {key: rows for key, rows in part.items() if key[1] < following}
        first = following
    return read(configs, out, 1, 0, STEPS["1"], kill=None), found, begins


@pytest.mark.parametrize("name", NAMES)
def test_killed_on_four_hosts_it_goes_on_with_two_and_with_three(name, runs):
    expected, found, begins = runs
    assert begins[0] < begins[1] < begins[2] < STEPS["3"]
    steps = range(STEPS["1"])
    assert sum(len(expected[name, step]) for step in steps) >= 1000
    for step in steps:
        assert found[name, step] == expected[name, step], step


@pytest.mark.parametrize("name", ["array_record", "block", "parquet", "webdataset"])
def test_an_epoch_of_the_run_holds_each_row_once(name, runs):
    """505 rows; the bad picture of the tars is in no batch, its replacement twice; ArrayRecord files hold the bad bytes as they were."""
    rows = np.array([row for step in range(STEPS["1"]) for row, _ in runs[0][name, step]])
    counts = np.bincount(rows[: ROWS - 5], minlength=ROWS - 5)
    assert len(counts) == ROWS - 5
    assert (counts != 1).sum() <= (0 if name == "parquet" else 2)
