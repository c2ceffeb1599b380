"""The benchmarks' harness: ratios, the form of results.json, which rows there are, and the GPU's code path on a tiny model."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tiny
from PIL import Image

from bacl_jax.config import ConfigError
from benchmarks import gpu, measure, run, shards
from benchmarks.cases import ROWS
from benchmarks.measure import timed

KEYS = ("name", "ours_ms", "peer_ms", "time_ratio", "ours_mib", "peer_mib", "memory_ratio", "peer")


@dataclasses.dataclass
class Measured:
    times: list[float]
    figures: dict[str, float]

    def milliseconds(self, kind="wall_ms"):
        return sorted(self.times)[len(self.times) // 2]


def test_a_result_holds_medians_and_their_ratios():
    row = next(row for row in ROWS if row.name == "loss_8192")
    result = run.result(row, Measured([9.0, 1.0, 2.0], {"temp_mib": 5.0}), Measured([8.0, 4.0, 1.0], {"over_inputs_mib": 20.0}))
    assert [result[key] for key in KEYS] == ["loss_8192", 2.0, 4.0, 0.5, 5.0, 20.0, 0.25, row.peer_name]


def test_a_side_without_a_memory_figure_has_no_ratio():
    assert run.ratio(3.0, None) is None
    assert run.ratio(None, 3.0) is None
    assert run.ratio(3.0, 0.0) is None


def test_rows_are_chosen_by_name_or_beginning():
    assert [row.name.split("_")[0] for row in run.chosen(["loss", "topk"])] == ["loss", "loss", "topk"]
    assert run.chosen([]) == list(ROWS)
    with pytest.raises(ConfigError, match="--rows=top5: no such row; there are train_step"):
        run.chosen(["top5"])


def test_results_of_rows_that_are_not_run_stay(tmp_path):
    path = tmp_path / "results.json"
    run.write([{"name": "topk", "ours_ms": 1}, {"name": "gradcache", "ours_ms": 2}], path)
    run.write([{"name": "train_step", "ours_ms": 3}, {"name": "topk", "ours_ms": 4}], path)
    assert [(one["name"], one["ours_ms"]) for one in json.loads(path.read_text())] == [("train_step", 3), ("topk", 4), ("gradcache", 2)]


def test_every_call_is_timed():
    calls = []
    times = timed(lambda: calls.append(1), 4)
    assert len(calls) == len(times["wall_ms"]) == len(times["cpu_ms"]) == 4
    assert times["others_cores"] >= 0


def test_flops_of_vit_b16_are_the_published_ones():
    """35 GFLOPs a picture forward (17.5 G multiply-adds, arXiv 2010.11929) and 6 for the text tower."""
    forward = gpu.tower_flops(gpu.config_of("vitb16", "infonce", 256)) / 3
    assert 39e9 < forward < 43e9


def test_the_gpu_measurement_runs_on_a_tiny_model():
    row = gpu.measure(tiny.plain(), tiny.one_device(), vocabulary=tiny.VOCABULARY, warm_up=1, calls=1)
    assert row["pairs_per_s"] > 0
    assert row["mfu"] is None


def test_the_gpu_benchmark_ends_with_one_line_where_there_is_no_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_side_that_reads_pairs_has_a_rate_and_memory_for_each_worker():
    side = Measured([500.0], {"pairs": 100, "workers": 2, "family_mib": 300.0})
    assert run.rates("peer", side) == {"peer_pairs_per_s": 200.0, "peer_mib_per_worker": 150.0}
    assert run.rates("ours", Measured([1.0], {})) == {}


def test_processor_time_and_memory_of_workers_count():
    before, alone = measure.own_seconds(), measure.family_mib()
    worker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; held = b'x' * 10**8; print(sum(i * i for i in range(3_000_000)), flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with worker:
        worker.stdout.readline()
        assert measure.family() == [os.getpid(), worker.pid]
        assert measure.own_seconds() - before > 0.05
        assert measure.family_mib() - alone > 50  # of 95; the process of the tests may give some back meanwhile
        worker.stdin.close()


def test_draining_keeps_nothing():
    assert measure.drain(iter(range(5)), 3) is None


def test_the_crop_of_grain_with_pillow_is_a_part_of_the_area_asked_for():
    random, image = np.random.default_rng(0), Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3)))
    for _ in range(20):
        found = shards.random_resized_crop(image, 32, random)
        assert found.shape == (32, 32, 3)
        assert 100 <= int(found[0, -1, 0]) - int(found[0, 0, 0]) < 200


def test_the_members_of_a_shard_are_found_by_their_offsets(tmp_path):
    members = {"a.jpg": b"picture a", "a.txt": b"caption a", "b.jpg": b"picture b", "b.txt": b"caption b"}
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found = shards.Members(tmp_path)
    assert [found[i] for i in range(len(found))] == [(b"picture a", b"caption a"), (b"picture b", b"caption b")]
