import copy
import io
import random
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import fsspec
import loopback
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bacl_jax.data import parquet, storage
from bacl_jax.data.parquet import ParquetFiles
from bacl_jax.data.stream import Record, Records
from bacl_jax.errors import DataError

ROWS = 40
_random = random.Random(0)
PICTURES = [_random.randbytes(200 + i) for i in range(ROWS)]
TABLE = pa.table(
    {
        "jpg": pa.array(PICTURES, pa.binary()),
        "caption": [f"cäption {i}" for i in range(ROWS)],
        "key": [f"{i:09d}" for i in range(ROWS)],
        "image": [{"bytes": picture, "path": "a.jpg"} for picture in PICTURES],
        "captions": [["one", None, f"two {i}"] for i in range(ROWS)],
        "number": list(range(ROWS)),
    }
)
PLAIN = [Record(PICTURES[i], (f"cäption {i}",), f"{i:09d}") for i in range(ROWS)]
SEVERAL = [Record(PICTURES[i], ("one", f"two {i}"), str(i)) for i in range(ROWS)]


def _content(table=TABLE, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **{"row_group_size": 10, **options})
    return file.getvalue()


def _one(table, **columns):
    """The reader of a table that is written to memory."""
    name = f"memory://{uuid.uuid4().hex}.parquet"
    with fsspec.open(name, "wb") as file:
        file.write(_content(table))
    return ParquetFiles(name, columns.get("image", "jpg"), columns.get("caption", "caption"), columns.get("key"))


def test_rows_are_what_was_written(tmp_path):
    (tmp_path / "a.parquet").write_bytes(_content())
    plain = ParquetFiles(str(tmp_path / "a.parquet"), "jpg", "caption", "key")
    assert isinstance(plain, Records)
    assert [plain[i] for i in range(len(plain))] == PLAIN
    assert list(ParquetFiles(str(tmp_path), "image", "captions", "number")) == SEVERAL
    assert ParquetFiles(str(tmp_path), "jpg", "caption")[13].key == "a.parquet#13"
    for index in (-1, ROWS):
        with pytest.raises(IndexError, match=f"row {index} of 40"):
            plain[index]


def test_several_files_of_any_length(tmp_path):
    parts = {"b/0.parquet": (0, 7), "b/1.parquet": (7, 7), "b/2.parquet": (7, 29), "c.parquet": (29, 40)}
    for name, (start, end) in parts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(_content(TABLE.slice(start, end - start), row_group_size=4))
    found = ParquetFiles(f"{tmp_path}/{{b/*.parquet,c.parquet}}", "jpg", "caption", "key")
    assert list(found) == PLAIN
    assert list(copy.deepcopy(found)) == PLAIN
    keys = [each.key for each in ParquetFiles(str(tmp_path), "jpg", "caption")]
    assert (keys[0], keys[7], keys[39]) == ("b/0.parquet#0", "b/2.parquet#0", "c.parquet#10")
    assert len(set(keys)) == ROWS


@pytest.mark.parametrize("picture", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.struct({"bytes": pa.large_binary()})])
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_types_of_columns(picture, text):
    pictures = [{"bytes": each} for each in PICTURES] if pa.types.is_struct(picture) else PICTURES
    captions = pa.array(TABLE["caption"].to_pylist())
    captions = captions.dictionary_encode() if pa.types.is_dictionary(text) else captions.cast(text)
    table = pa.table({"image": pa.array(pictures, picture), "caption": captions, "key": TABLE["key"]})
    assert list(_one(table, image="image", key="key")) == PLAIN
    if not pa.types.is_dictionary(text):
        lists = pa.table({"jpg": TABLE["jpg"], "caption": pa.array([["a", "b"]] * ROWS, pa.large_list(text))})
        assert _one(lists)[3].captions == ("a", "b")


def test_any_file_system():
    name = uuid.uuid4().hex
    for part in range(4):
        fsspec.filesystem("memory").pipe(f"/{name}/{part}.parquet", _content(TABLE.slice(part * 10, 10), row_group_size=5))
    for path in (f"memory://{name}", f"memory://{name}/*.parquet", f"memory://{name}/{{0..3}}.parquet"):
        assert list(ParquetFiles(path, "jpg", "caption", "key")) == PLAIN
    assert ParquetFiles(f"memory://{name}", "jpg", "caption")[39].key == "3.parquet#9"


def test_over_http_with_faults(monkeypatch):
    """Without further packages, through the reader with retries that tar shards have."""
    monkeypatch.setattr(storage, "TIMEOUT", 0.2)
    with loopback.serving(monkeypatch) as server:
        server.files = {f"/{part}.parquet": _content(TABLE.slice(part * 20, 20), row_group_size=5) for part in range(2)}
        draw = random.Random(0)
        server.faults = [fault for _ in range(20) for fault in (*draw.choices([500, 429, "drop", "cut"], k=draw.randrange(4)), None)]
        server.faults[3:3] = ["hang"]
        path = f"{server.url}/{{0..1}}.parquet"
        found = ParquetFiles(path, "jpg", "caption", "key")
        assert list(found) == PLAIN
        assert len(server.faults) == 0
        tight = ParquetFiles(path, "jpg", "caption", "key", cache_bytes=1)
        server.faults = [503] * storage.TRIES
        with pytest.raises(DataError, match=r"1\.parquet: cannot measure it, 6 tries failed \(HTTPError: .*503") as caught:
            tight[30]
        assert (caught.value.kind, caught.value.shard) == ("remote", f"{server.url}/1.parquet")
        assert tight[30] == PLAIN[30]
        server.faults = [None, *[500] * 100]  # the file is measured, then reading fails
        with pytest.raises(DataError, match=r"1\.parquet: cannot read it, 6 tries failed") as caught:
            tight[20]
        assert caught.value.kind == "remote"
        server.faults = []
        del server.files["/1.parquet"]
        with pytest.raises(DataError, match=r"1\.parquet: not found") as caught:
            tight[20]
        assert caught.value.kind == "missing"
        skipped = []
        assert list(ParquetFiles(path, "jpg", "caption", "key", on_skip=skipped.append)) == PLAIN[:20]
        assert [error.kind for error in skipped] == ["missing"]


def test_threads_read_each_row_group_once(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(_content())
    found = ParquetFiles(str(tmp_path), "jpg", "caption", "key")
    opened = []
    real = parquet._opened
    monkeypatch.setattr(parquet, "_opened", lambda file, part: opened.append(part) or real(file, part))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(found.__getitem__, list(range(ROWS)) * 5)) == PLAIN * 5
    assert sorted(opened) == [f"row group {i}" for i in range(4)]
    tight = ParquetFiles(str(tmp_path), "jpg", "caption", "key", cache_bytes=1)
    opened.clear()
    order = random.Random(0).sample(range(ROWS), ROWS)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tight.__getitem__, order)) == [PLAIN[i] for i in order]
    assert len(opened) > 4


def _replaced(column, values):
    """The table with some rows of a column replaced."""
    cells = TABLE[column].to_pylist()
    for row, value in values.items():
        cells[row] = value
    return TABLE.set_column(TABLE.column_names.index(column), column, pa.array(cells, TABLE[column].type))


def _not_utf8():
    cells = pa.array([b"r\xffd" if i == 12 else b"red" for i in range(ROWS)])
    return TABLE.set_column(1, "caption", pa.StringArray.from_buffers(ROWS, *cells.buffers()[1:]))


BAD_ROWS = {
    "picture": (_replaced("jpg", {12: None}), {}, "missing", r"the picture \(column 'jpg'\) is null; bytes must lie in the file"),
    "struct": (_replaced("image", {12: None}), {"image": "image"}, "missing", r"the picture \(column 'image'\) is null"),
    "path alone": (_replaced("image", {12: {"bytes": None, "path": "a.jpg"}}), {"image": "image"}, "missing", "a path alone is not read"),
    "caption": (_replaced("caption", {12: None}), {}, "empty_caption", r"no caption \(column 'caption' holds None\)"),
    "captions": (_replaced("captions", {12: None}), {"caption": "captions"}, "empty_caption", "no caption"),
    "nulls": (_replaced("captions", {12: [None]}), {"caption": "captions"}, "empty_caption", r"holds \[None\]"),
    "encoding": (_not_utf8(), {}, "encoding", "column 'caption' is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_cannot_be_used(case):
    table, columns, kind, message = BAD_ROWS[case]
    found = _one(table, **columns)
    with pytest.raises(DataError, match=rf"\.parquet, row 13: .*{message}") as caught:
        found[12]
    assert caught.value.kind == kind
    assert caught.value.shard.startswith("memory://")
    assert found[11].image == PICTURES[11]
    assert found[13].image == PICTURES[13]


def test_a_null_key_is_no_key():
    assert [_one(_replaced("key", {1: None, 2: ""}), key="key")[i].key[-10:] for i in range(3)] == ["000000000", ".parquet#1", ".parquet#2"]


BAD_COLUMNS = {
    "absent": ({"image": "png"}, r"column 'png' occurs 0 times; found: 'jpg', 'caption', 'key', 'image', .*name the columns"),
    "no picture": ({"image": "number"}, "column 'number' holds int64; expected binary, or a struct with a binary field 'bytes'"),
    "text picture": ({"image": "key"}, "column 'key' holds string; expected binary"),
    "no text": ({"caption": "jpg"}, "column 'jpg' holds binary; expected a text, or a list of texts"),
    "no key": ({"key": "image"}, r"column 'image' holds struct<.*expected a text or a whole number"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_columns_that_cannot_be_used(case):
    columns, message = BAD_COLUMNS[case]
    with pytest.raises(DataError, match=message) as caught:
        _one(TABLE, **columns)
    assert caught.value.kind == "columns"


def test_files_that_cannot_be_used(tmp_path):
    good, other = _content(TABLE.slice(0, 20)), _content(TABLE.slice(20))
    contents = {
        "0": good,
        "1": b"",
        "2": good[:-100],
        "3": b"PAR1" + bytes(200) + b"PAR1",
        "4": _content(TABLE.drop_columns("jpg")),
        "5": other,
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
    for name, kind in {"1": "syntax", "2": "syntax", "3": "syntax", "4": "columns"}.items():
        with pytest.raises(DataError, match=f"{name}.parquet") as caught:
            ParquetFiles(f"{tmp_path}/{name}.parquet", "jpg", "caption")
        assert (caught.value.kind, caught.value.shard) == (kind, f"{tmp_path}/{name}.parquet")
    with pytest.raises(DataError, match=r"\.parquet"):
        ParquetFiles(str(tmp_path), "jpg", "caption")
    skipped = []
    assert list(ParquetFiles(str(tmp_path), "jpg", "caption", "key", on_skip=skipped.append)) == PLAIN
    assert Counter(error.kind for error in skipped) == {"syntax": 3, "columns": 1}
    with pytest.raises(DataError, match="no row in 0 readable Parquet files") as caught:
        ParquetFiles(f"{tmp_path}/1.parquet", "jpg", "caption", on_skip=skipped.append)
    assert caught.value.kind == "empty"
    with pytest.raises(DataError, match="no row in 1 readable"):
        _one(TABLE.slice(0, 0))
    for path in (f"{tmp_path}/{{6,7}}.parquet", "memory://{none,nothing}.parquet"):
        with pytest.raises(DataError, match=r"footer: cannot be read|nothing?\.parquet: not found|none.parquet: not found") as caught:
            ParquetFiles(path, "jpg", "caption")
        assert caught.value.kind == "missing"


def test_files_that_change_after_they_were_opened(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(_content())
    found = ParquetFiles(str(path), "jpg", "caption", "key", cache_bytes=1)
    changes = {
        "the file has only 1 by now": _content(TABLE.slice(0, 10)),
        "10 rows, the footer said 10|8 rows, the footer said 10": _content(TABLE, row_group_size=8),
        "column 'jpg' occurs 0 times": _content(TABLE.drop_columns("jpg")),
    }
    for message, content in changes.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            found[15]
    path.unlink()
    with pytest.raises(DataError, match=r"a.parquet, row group 1: cannot be read") as caught:
        found[15]
    assert caught.value.kind == "missing"
    path.write_bytes(_content())
    assert found[15] == PLAIN[15]  # it came back
