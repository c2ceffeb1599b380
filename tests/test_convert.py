import contextlib
import dataclasses
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bacl_jax import data
from bacl_jax.config import Config, ConfigError, from_config_dict
from bacl_jax.data import convert
from bacl_jax.data.array_record import ArrayRecordFiles
from bacl_jax.data.stream import Record
from bacl_jax.errors import DataError

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass
class Rows:
    """Rows made from their numbers; those in `bad` raise."""

    n: int
    bad: tuple[int, ...] = ()
    seconds: float = 0.0
    caption: str = "caption"
    first: int = 0

    def __post_init__(self):
        self.asked = []

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.asked.append(index)
        time.sleep(self.seconds)
        if index in self.bad:
            raise DataError(f"row {index}", kind="missing" if index % 2 else "syntax", shard=f"file {index // 10}")
        number = self.first + index
        return Record(random.Random(number).randbytes(500), (f"{self.caption} {index}",), f"key {index}")


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_and_index(tmp_path):
    index = convert.write(Rows(23), tmp_path / "a", shard_rows=10)
    names = [f"a-0000{i}-of-00003.array_record" for i in range(3)]
    assert sorted(_content(tmp_path / "a")) == [*names, "index.json"]
    stored = json.loads((tmp_path / "a" / "index.json").read_text())
    assert {key: stored[key] for key in ("rows", "skipped", "complete")} == {"rows": 23, "skipped": {}, "complete": True}
    for name, shard, rows in zip(names, stored["shards"], (10, 10, 3), strict=True):
        content = (tmp_path / "a" / name).read_bytes()
        assert shard == {"name": name, "rows": rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "skipped": {}}
    assert [dataclasses.asdict(shard) for shard in index.shards] == stored["shards"]
    assert list(ArrayRecordFiles(str(tmp_path / "a"))) == [Rows(23)[i] for i in range(23)]


def test_rows_left_out_are_counted(tmp_path, caplog):
    bad, skipped = (0, 3, 10, 11, 12, 13, 14, 22), []
    index = convert.write(Rows(25, bad), tmp_path / "a", shard_rows=5, on_error="skip", on_skip=skipped.append)
    assert [shard.rows for shard in index.shards] == [3, 5, 0, 5, 4]
    assert [shard.skipped for shard in index.shards] == [{"missing": 1, "syntax": 1}, {}, {"missing": 2, "syntax": 3}, {}, {"syntax": 1}]
    assert json.loads((tmp_path / "a" / "index.json").read_text())["skipped"] == {"missing": 3, "syntax": 5}
    assert [str(error) for error in skipped] == [f"row {row}" for row in bad]
    assert "8 rows left out" in caplog.text
    assert [row.key for row in ArrayRecordFiles(str(tmp_path / "a"))] == [f"key {i}" for i in range(25) if i not in bad]


def test_a_bad_row_stops_it_and_leaves_whole_files(tmp_path):
    with pytest.raises(DataError, match="row 13"):
        convert.write(Rows(25, (13,)), tmp_path / "a", shard_rows=10)
    assert sorted(_content(tmp_path / "a")) == ["a-00000-of-00003.array_record", "index.json"]
    with pytest.raises(DataError, match="stopped after 1 of 3 files; start it again"):
        ArrayRecordFiles(str(tmp_path / "a"))
    mended = Rows(25)
    convert.write(mended, tmp_path / "a", shard_rows=10)
    assert (mended.asked[:3], sorted(mended.asked[3:])) == ([0, 12, 24], list(range(10, 25)))
    convert.write(Rows(25), tmp_path / "b" / "a", shard_rows=10)
    assert _content(tmp_path / "a") == _content(tmp_path / "b" / "a")


def test_files_that_were_lost_or_cut_are_written_again(tmp_path):
    convert.write(Rows(25), tmp_path / "a", shard_rows=5)
    before = _content(tmp_path / "a")
    (tmp_path / "a" / "a-00001-of-00005.array_record").unlink()
    os.truncate(tmp_path / "a" / "a-00003-of-00005.array_record", 100)
    again = Rows(25)
    convert.write(again, tmp_path / "a", shard_rows=5)
    assert (again.asked[:3], sorted(again.asked[3:])) == ([0, 12, 24], [*range(5, 10), *range(15, 20)])
    assert _content(tmp_path / "a") == before


def test_what_is_refused(tmp_path):
    convert.write(Rows(25), tmp_path / "a", shard_rows=5)
    for rows, shard_rows in ((26, 5), (25, 6)):
        with pytest.raises(DataError, match=r"holds a conversion of 25 rows, 5 a file; this one has .* choose another folder") as caught:
            convert.write(Rows(rows), tmp_path / "a", shard_rows=shard_rows)
        assert caught.value.kind == "type"
    with pytest.raises(DataError, match="no row to convert") as caught:
        convert.write(Rows(0), tmp_path / "b")
    assert caught.value.kind == "empty"
    with pytest.raises(ValueError, match="shard_rows = 0"):
        convert.write(Rows(3), tmp_path / "b", shard_rows=0)


@pytest.mark.parametrize("other", [Rows(25, caption="text"), Rows(25, first=1), Rows(25, bad=(0, 12), caption="text")])
def test_another_source_of_as_many_rows_is_refused(tmp_path, other):
    """Other captions, other pictures, and only one row of the three that are compared can be read."""
    with pytest.raises(DataError, match="row 13"):
        convert.write(Rows(25, bad=(13,)), tmp_path / "a", shard_rows=5)
    for before in ("stopped", "finished"):
        content = _content(tmp_path / "a")
        with pytest.raises(DataError, match=r"a: holds a conversion of another source: row (1|25) of 25 was another one; choose") as caught:
            convert.write(other, tmp_path / "a", shard_rows=5)
        assert (caught.value.kind, caught.value.shard) == ("type", str(tmp_path / "a")), before
        assert _content(tmp_path / "a") == content
        convert.write(Rows(25), tmp_path / "a", shard_rows=5)


def test_a_source_is_known_again_by_the_rows_that_can_be_read(tmp_path):
    """Rows are mended, a remote fails and recovers: neither makes another source of it."""
    for bad in ((12,), (0, 5), (0, 10, 24), ()):
        with contextlib.suppress(DataError):
            convert.write(Rows(25, bad), tmp_path / "a", shard_rows=5)
    convert.write(Rows(25), tmp_path / "b" / "a", shard_rows=5)
    assert _content(tmp_path / "a") == _content(tmp_path / "b" / "a")


def test_another_caption_column_is_another_source(tmp_path):
    (tmp_path / "0.png").write_bytes(b"picture")
    (tmp_path / "pairs.csv").write_text("image,caption,title\n0.png,a cat,Felix\n")
    manifest = {"kind": "manifest", "path": str(tmp_path / "pairs.csv")}
    assert converted(tmp_path, **manifest)[0].captions == ("a cat",)
    with pytest.raises(DataError, match="another source") as caught:
        converted(tmp_path, caption_column="title", **manifest)
    assert caught.value.kind == "type"
    moved = (tmp_path / "moved").mkdir() or tmp_path / "moved"
    for name in ("0.png", "pairs.csv"):
        (tmp_path / name).rename(moved / name)
    assert len(converted(tmp_path, kind="manifest", path=str(moved / "pairs.csv"))) == 1


def test_a_disk_that_fills_up(tmp_path):
    """What stops here is the size that a file may have; errors of writing come out alike."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a-00000-of-00001.array_record cannot be written: .*File too large"):
            convert.write(Rows(2000), tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert _content(tmp_path / "a") == {}


def test_killed_at_any_time(tmp_path):
    """What is left is never taken for whole, and a further start makes what one start would have made."""
    program = "import sys, test_convert as t; t.convert.write(t.Rows(60, seconds=0.3), t.Path(sys.argv[1]), shard_rows=10)"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    out, starts = tmp_path / "a", 0
    for seconds in (0.05, 0.1, 0.02):
        child = subprocess.Popen([sys.executable, "-c", program, str(out)], env=environment, stdout=subprocess.DEVNULL)
        known = len(list(out.glob("*.array_record")))
        while child.poll() is None and len(list(out.glob(".*.partial"))) == 0:
            time.sleep(0.002)
        while child.poll() is None and len(list(out.glob("*.array_record"))) == known and seconds > 0.02:
            time.sleep(0.002)
        time.sleep(seconds)
        child.kill()
        starts += child.wait() == -signal.SIGKILL
        with pytest.raises(DataError, match=r"stopped after . of 6 files|no file that ends in index.json"):
            ArrayRecordFiles(str(out))
    assert starts == 3
    convert.write(Rows(60), out, shard_rows=10)
    convert.write(Rows(60), tmp_path / "b" / "a", shard_rows=10)
    assert _content(out) == _content(tmp_path / "b" / "a")


def converted(tmp_path, **settings):
    config = from_config_dict({"data": settings}).data
    convert.write(data.open_records(config), tmp_path / f"records-{config.split}")
    return list(ArrayRecordFiles(str(tmp_path / f"records-{config.split}")))


def test_a_manifest_by_split(tmp_path):
    contents = [random.Random(row).randbytes(300) for row in range(4)]
    for row, content in enumerate(contents):
        (tmp_path / f"{row}.png").write_bytes(content)
    lines = [f"{row}.png,Caption  {row},{'test' if row == 2 else 'train'}" for row in range(4)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption,split", *lines]) + "\n")
    manifest = {"kind": "manifest", "path": str(tmp_path / "pairs.csv"), "split_column": "split"}
    found = {split: converted(tmp_path, split=split, **manifest) for split in ("train", "test")}
    assert [(row.image, row.captions, row.key) for row in found["train"]] == [
        (contents[row], (f"caption {row}",), f"{row}.png") for row in (0, 1, 3)
    ]
    assert [row.key for row in found["test"]] == ["2.png"]
    with pytest.raises(ConfigError, match=r"data.split = 'all'; allowed for a manifest: train, validation, test"):
        converted(tmp_path, split="all", **manifest)
    records = data.open_records(from_config_dict({"data": manifest}).data)
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png: cannot be read") as caught:
        records[2]
    assert caught.value.kind == "missing"


def test_the_emoji_are_converted_as_they_are_trained(tmp_path):
    found = converted(tmp_path, kind="emoji", split="validation")
    split = data.load(Config().data).splits["validation"].source
    assert [(row.key, *row.captions) for row in found] == [(split[i].anchor_key, split[i].caption) for i in range(len(split))]
    assert all(row.image.startswith(b"\x89PNG") for row in found)
