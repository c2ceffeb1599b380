"""Every kind of rows gives other processes the rows that it gives its own, whether they are started anew or forked."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import loopback
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bacl_jax.data import convert, tar_index
from bacl_jax.data.stream import Record

ROOT = Path(__file__).parents[1]
RECORDS = [Record(bytes([i]) * (100 + i), (f"caption {i}",), f"{i:03d}") for i in range(20)]


def read(method, *sources):
    """What worker_rows.py prints."""
    command = [sys.executable, "tests/worker_rows.py", method, *sources]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def sources(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for record in RECORDS[10 * shard : 10 * shard + 10]:
                for name, content in ((f"{record.key}.jpg", record.image), (f"{record.key}.txt", record.captions[0].encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    tar_index.build(f"{tmp_path}/{{0,1}}.tar")
    columns = {"jpg": [each.image for each in RECORDS], "caption": [each.captions[0] for each in RECORDS]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=5)
    convert.write(RECORDS, tmp_path / "records", shard_rows=10)
    return [f"webdataset={tmp_path}/{{0,1}}.tar", f"parquet={tmp_path}/a.parquet", f"array_record={tmp_path}/records"]


@pytest.mark.parametrize(("method", "kinds"), [("spawn", ("webdataset", "parquet", "array_record")), ("fork", ("webdataset", "parquet"))])
def test_two_processes_read_what_one_reads(sources, method, kinds):
    """The readers of ArrayRecord files have threads, which a fork does not take along: their processes are started anew."""
    found = read(method, *(source for source in sources if source.startswith(kinds)))
    assert found.keys() == {*kinds}
    for kind, digests in found.items():
        assert digests["own"] == digests["others"], kind
        assert len(set(digests["own"])) == len(RECORDS), kind


def test_two_processes_read_a_remote(tmp_path, monkeypatch, sources):
    with loopback.serving(monkeypatch) as server:
        server.files = {"/a.parquet": (tmp_path / "a.parquet").read_bytes()}
        found = read("fork", f"parquet={server.url}/a.parquet")
    assert found["parquet"]["own"] == found["parquet"]["others"]
