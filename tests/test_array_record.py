import copy
import json
import random
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from bacl_jax.data import array_record, convert
from bacl_jax.data.array_record import ArrayRecordFiles, decode, encode
from bacl_jax.data.stream import Record, Records
from bacl_jax.errors import DataError

ROWS = 40
_random = random.Random(0)
PLAIN = [Record(_random.randbytes(200 + i), (f"cäption {i}", "", "two")[: 1 + i % 3], f"kéy {i}") for i in range(ROWS)]


@pytest.fixture
def folder(tmp_path):
    convert.write(PLAIN, tmp_path / "pairs", shard_rows=15)
    return tmp_path / "pairs"


def test_rows_are_what_was_written(folder):
    found = ArrayRecordFiles(str(folder))
    assert isinstance(found, Records)
    assert list(found) == PLAIN
    assert list(copy.deepcopy(found)) == PLAIN
    for index in (-1, ROWS):
        with pytest.raises(IndexError, match=f"row {index} of 40"):
            found[index]


def test_several_folders(tmp_path):
    for part in range(3):
        convert.write(PLAIN[part * 10 : part * 10 + 10], tmp_path / f"part{part}", shard_rows=3)
    for path in ("", "part*", "part{0..2}", "{part0/index.json,part1,part2}"):
        assert list(ArrayRecordFiles(f"{tmp_path}/{path}")) == PLAIN[:30]
    assert list(ArrayRecordFiles(f"{tmp_path}/part{{1,0}}")) == PLAIN[10:20] + PLAIN[:10]


def test_threads_and_few_open_files(folder, monkeypatch):
    monkeypatch.setattr(array_record, "OPEN_FILES", 1)
    found = ArrayRecordFiles(str(folder))
    order = random.Random(0).choices(range(ROWS), k=1000)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(found.__getitem__, order)) == [PLAIN[i] for i in order]


def test_the_form_of_a_record():
    """Against the table in the module's text."""
    body = struct.pack("<Q5I", 7, 3, 1, 2, 2, 0) + b"pic" + b"k" + "é".encode()
    content = b"BJR1" + struct.pack("<I", zlib.crc32(body)) + body
    record = Record(b"pic", ("é", ""), "k")
    assert encode(record, 7) == content
    assert decode(content, 7) == record
    assert decode(encode(Record(b"", (), ""), 0), 0) == Record(b"", (), "")


def _with_checksum(body):
    return b"BJR1" + struct.pack("<I", zlib.crc32(body)) + body


def test_records_that_cannot_be_used():
    good = encode(PLAIN[0], 3)
    cases = {
        "expected b'BJR1'": (b"TFRecord" * 9, "syntax"),
        "starts with b''": (b"", "syntax"),
        "checksum is not that of the bytes": (good[:-1], "checksum"),
        "record of place 4 lies at 3": (encode(PLAIN[0], 4), "checksum"),
        "4,294,967,295 captions announced in 28 bytes": (_with_checksum(struct.pack("<Q3I", 3, 0, 0, 2**32 - 1)), "syntax"),
        "29 bytes, the header announces other lengths": (_with_checksum(struct.pack("<Q3I", 3, 0, 0, 0) + b"x"), "syntax"),
        "1 captions announced in 30 bytes": (_with_checksum(struct.pack("<Q3I", 3, 0, 0, 1) + b"xx"), "syntax"),
        "not UTF-8": (_with_checksum(struct.pack("<Q3I", 3, 0, 1, 0) + b"\xff"), "encoding"),
    }
    for message, (content, kind) in cases.items():
        with pytest.raises(DataError, match=message) as caught:
            decode(content, 3)
        assert caught.value.kind == kind
    with pytest.raises(DataError, match="cannot be written as UTF-8") as caught:
        encode(Record(b"", ("\ud800",), "k"), 0)
    assert caught.value.kind == "encoding"


def test_every_flipped_bit_of_a_record_is_found():
    content = encode(Record(b"picture", ("caption",), "key"), 0)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError):
            decode(bytes(damaged), 0)


def test_folders_that_cannot_be_used(folder, tmp_path):
    index = json.loads((folder / "index.json").read_text())
    (tmp_path / "empty").mkdir()
    cases = [
        (f"{folder}/pairs-00000-of-00003.array_record", "type", "name the folder"),
        (f"{tmp_path}/empty", "missing", "no file that ends in index.json"),
        (f"{tmp_path}/{{nothing,empty}}", "missing", "no such file or folder"),
    ]
    damaged = {
        "stopped after 2 of 3 files": ("missing", index | {"rows": 30, "shards": index["shards"][:2]}),
        "no row in 0": ("empty", index | {"rows": 0, "source_rows": 0, "shards": []}),
        "damaged .*the format is not": ("syntax", index | {"format": "other"}),
        "damaged .*a number, a name": ("syntax", index | {"shard_rows": 0}),
        "a number, a name": ("syntax", index | {"rows": 15, "shards": [index["shards"][0] | {"name": "../pairs/x.array_record"}]}),
        "the number of rows is not the sum": ("syntax", index | {"rows": 41}),
        "the source is no table": ("syntax", index | {"source": 3}),
        "KeyError": ("syntax", {"format": "BJR1"}),
        "TypeError": ("syntax", []),
    }
    for number, (message, (kind, content)) in enumerate(damaged.items()):
        (tmp_path / f"bad{number}").mkdir()
        (tmp_path / f"bad{number}" / "index.json").write_text(json.dumps(content))
        cases.append((f"{tmp_path}/bad{number}", kind, message))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "index.json").write_text(json.dumps(index)[:-5])
    for path, kind, message in [*cases, (f"{tmp_path}/cut", "syntax", "JSONDecodeError")]:
        with pytest.raises(DataError, match=message) as caught:
            ArrayRecordFiles(path)
        assert caught.value.kind == kind


def test_a_remote_folder_is_refused(folder):
    fsspec.filesystem("memory").put(str(folder), "/remote", recursive=True)
    with pytest.raises(DataError, match=r"memory:///remote/index.json: .* from a local folder; mount or copy it") as caught:
        ArrayRecordFiles("memory://remote")
    assert caught.value.kind == "type"


def test_files_that_vanish_or_are_cut(folder):
    """The library itself takes a file that was cut off for an empty one."""
    path = folder / "pairs-00001-of-00003.array_record"
    content = path.read_bytes()
    cases = {
        f"{len(content) - 1:,} bytes, index.json says {len(content):,}": content[:-1],
        "0 bytes, index.json says": b"",
        "0 rows can be found, index.json says 15": bytes(len(content)),
    }
    found = ArrayRecordFiles(str(folder))
    for message, damaged in cases.items():
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=message) as caught:
            found[20]
        assert (caught.value.kind, caught.value.shard) == ("syntax", str(path))
    path.unlink()
    with pytest.raises(DataError, match=r"pairs-00001-of-00003.array_record: cannot be read") as caught:
        found[20]
    assert caught.value.kind == "missing"
    assert [found[i] for i in (14, 30)] == [PLAIN[14], PLAIN[30]]
    path.write_bytes(content)
    assert list(found) == PLAIN


def test_a_file_in_the_place_of_another(folder):
    first, second = (folder / f"pairs-0000{i}-of-00003.array_record" for i in (0, 1))
    shutil.copy(second, first)  # as many rows and bytes, and good checksums
    with pytest.raises(DataError, match=r"pairs-00000-of-00003.array_record, row 3: .*place 17 lies at 2: files were exchanged") as caught:
        ArrayRecordFiles(str(folder))[2]
    assert caught.value.kind == "checksum"
