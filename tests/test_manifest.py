import contextlib
import csv
import dataclasses
import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import DataSet, ManifestError, load, manifest, records
from bacl_jax.errors import DataError

CONFIG = DataConfig(kind="manifest", image_size=8)
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20, 10), colour).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "images" / "0.png").read_bytes()[:50])
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


def _write(folder, kind, rows, columns=("image", "caption")):
    """A manifest of one of the three kinds; rows are tuples in the order of columns."""
    path = folder / f"data.{kind}"
    if kind == "csv":
        path.write_text("".join(",".join(f'"{field}"' for field in row) + "\n" for row in (columns, *rows)), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    else:
        table = pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(columns)})
        pq.write_table(table, path)
    return path


def _load(path, **fields):
    return load(dataclasses.replace(CONFIG, path=str(path), **fields))


def _bytes_of(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


GOOD = [("images/0.png", "A  red thing"), ("images/1.png", "green"), ("images/0.png", "red"), ("images/2.png", "Bläulich")]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_good_manifest(folder, kind):
    data = _load(_write(folder, kind, GOOD))
    assert [data.train[i].caption for i in range(4)] == ["a red thing", "green", "red", "bläulich"]
    assert [data.train[i].anchor_key for i in range(4)] == ["images/0.png", "images/1.png", "images/0.png", "images/2.png"]
    assert [data.captions[i] for i in data.train_caption] == ["a red thing", "green", "red", "bläulich"]
    assert data.train[1].image.tolist()[0][0] == [0, 128, 0]
    assert {name: len(split.source) for name, split in data.splits.items()} == {"validation": 0, "test": 0}
    assert data.skipped == {}
    assert "4 pairs" in data.description


def test_one_picture_under_several_names_is_one_anchor(folder):
    (folder / "images" / "link.png").symlink_to(folder / "images" / "0.png")
    rows = [("images/0.png", "a"), ("./images/../images/0.png", "b"), ("images/link.png", "c"), (str(folder / "images" / "0.png"), "d")]
    data = _load(_write(folder, "csv", rows))
    assert {data.train[i].anchor_key for i in range(4)} == {"images/0.png"}


def test_blank_lines_at_the_end_of_jsonl_are_no_rows(folder):
    path = _write(folder, "jsonl", GOOD)
    path.write_bytes(path.read_bytes() + b"\n  \n")
    assert len(_load(path).train) == 4


def test_a_caption_of_invisible_characters_is_empty(folder):
    with pytest.raises(ManifestError, match=r"the caption .* is empty"):
        _load(_write(folder, "csv", [("images/0.png", "\u200b")]))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_ids_splits_and_column_names(folder, kind):
    rows = [("a", "train", "images/0.png", "red"), ("a", "train", "images/1.png", "green"), ("", "test", "images/2.png", "blue")]
    rows.append(("b", "validation", "images/1.png", "green"))
    path = _write(folder, kind, rows, ("key", "part", "file", "text"))
    data = _load(path, image_column="file", caption_column="text", id_column="key", split_column="part")
    assert [data.train[i].anchor_key for i in range(2)] == ["a", "a"]
    assert data.splits["test"].source[0].anchor_key == "images/2.png"  # an empty id is the path
    assert [data.captions[i] for i in data.splits["validation"].caption] == ["green"]


def test_pictures_that_do_not_fit_into_memory_are_read_when_asked_for(folder, monkeypatch):
    kept = _load(_write(folder, "csv", GOOD))
    monkeypatch.setattr(manifest, "KEPT_BYTES", 100)
    lazy = _load(folder / "data.csv")
    assert isinstance(lazy.train, manifest.FileSource)
    for i in range(len(GOOD)):
        np.testing.assert_array_equal(lazy.train[i].image, kept.train[i].image)
    (folder / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1.png.*readable at start-up"):
        lazy.train[1]


def test_long_thin_pictures_count_with_their_real_size(folder, monkeypatch):
    Image.new("RGB", (2000, 8)).save(folder / "thin.png")  # 48,000 bytes, and nothing to shrink; a square of 16 x 16 has 768
    rows = [*GOOD, ("thin.png", "thin")]
    pictures = 3 * 20 * 10 * 3 + 2000 * 8 * 3
    monkeypatch.setattr(manifest, "KEPT_BYTES", pictures - 1)
    lazy = _load(_write(folder, "csv", rows))
    assert isinstance(lazy.train, manifest.FileSource)
    assert lazy.train[4].image.shape == (8, 2000, 3)
    monkeypatch.setattr(manifest, "KEPT_BYTES", pictures)
    assert not isinstance(_load(folder / "data.csv").train, manifest.FileSource)


def _outside(folder):
    return str((folder.parent / "secret.png").absolute())


BAD_ROWS = {
    "missing": ("images/9.png", "c", r"image 'images/9.png' is no file in .*correct the path"),
    "missing: folder": ("images", "c", r"image 'images' is no file"),
    "missing: empty": ("", "c", "the image path is empty"),
    "unreadable": ("text.png", "c", r"text.png: not a readable image.*formats read"),
    "unreadable: cut": ("broken.png", "c", r"broken.png: not a readable image"),
    "empty_caption": ("images/0.png", " \t", r"the caption \(column 'caption'\) is empty"),
    "outside": ("../secret.png", "c", r"image '../secret.png' lies outside .*symbolic link"),
    "outside: inner": ("images/../../secret.png", "c", "lies outside"),
    "outside: absolute": ("ABSOLUTE", "c", "lies outside"),
    "bomb": ("bomb.png", "c", r"decompression bomb: 200 x 100 = 20,000 pixels, data.max_pixels is 1,000"),
}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_or_skipped(folder, kind, name, caplog):
    Image.new("RGB", (4, 4)).save(folder.parent / "secret.png")
    (folder / "bomb.png").write_bytes(_bytes_of(Image.new("1", (200, 100)))[:60])  # the header
    image, caption, message = BAD_ROWS[name]
    image = _outside(folder) if image == "ABSOLUTE" else image
    path = _write(folder, kind, [GOOD[0], (image, caption), GOOD[1]])
    with pytest.raises(ManifestError, match=message) as caught:
        _load(path, max_pixels=1000)
    error = caught.value
    assert str(error).startswith(f"{path}, data row 2: ")
    assert (error.row, error.kind) == (2, name.split(":")[0])
    seen = []
    config = dataclasses.replace(CONFIG, path=str(path), on_error="skip", max_pixels=1000)
    data = load(config, on_skip=seen.append)
    assert len(data.train) == 2
    assert data.skipped == {error.kind: 1}
    assert [str(each) for each in seen] == [str(error)]
    assert str(error) in caplog.text


def test_absolute_paths_inside_the_folder_and_links_are_fine(folder):
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (4, 4)).save(elsewhere / "x.png")
    os.symlink(elsewhere, folder / "linked")
    data = _load(_write(folder, "csv", [(str(folder / "images" / "0.png"), "red"), ("linked/x.png", "x")]))
    assert len(data.train) == 2


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_wrong_columns(folder, kind):
    path = _write(folder, kind, GOOD, ("image", "text"))
    with pytest.raises(ManifestError, match=r"'caption'") as caught:
        _load(path)
    assert caught.value.kind == "columns"
    assert caught.value.row == (1 if kind == "jsonl" else None)
    with pytest.raises(ManifestError, match=r"'split'"):
        _load(_write(folder, kind, GOOD), split_column="split")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_wrong_split(folder, kind):
    path = _write(folder, kind, [("images/0.png", "red", "train"), ("images/1.png", "green", "dev")], ("image", "caption", "split"))
    with pytest.raises(ManifestError, match=r"data row 2: 'dev' in column 'split'; use one of train, validation, test"):
        _load(path, split_column="split")


def _csv_bytes(folder, content):
    (folder / "data.csv").write_bytes(content)
    return folder / "data.csv"


def test_csv_that_is_not_utf8(folder):
    path = _csv_bytes(folder, "image,caption\nimages/0.png,red\nimages/1.png,grün\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"data row 2: column 'caption' is not UTF-8; save the file as UTF-8") as caught:
        _load(path)
    assert caught.value.kind == "encoding"
    assert _load(path, on_error="skip").skipped == {"encoding": 1}
    with pytest.raises(ManifestError, match="the header line is not UTF-8") as caught:
        _load(_csv_bytes(folder, "image,caption\nimages/0.png,red\n".encode("utf-16")), on_error="skip")


def test_jsonl_and_parquet_that_are_not_utf8(folder):
    good = json.dumps({"image": "images/0.png", "caption": "red"}).encode()
    (folder / "data.jsonl").write_bytes(good + b"\n" + good.replace(b"red", b"r\xffd") + b"\n" + good.replace(b"red", b"\\ud800") + b"\n")
    with pytest.raises(ManifestError, match="data row 2: the line is not UTF-8"):
        _load(folder / "data.jsonl")
    assert _load(folder / "data.jsonl", on_error="skip").skipped == {"encoding": 2}
    captions = pa.array([b"red", b"r\xffd"], pa.binary()).view(pa.binary())
    text = pa.StringArray.from_buffers(2, captions.buffers()[1], captions.buffers()[2])
    pq.write_table(pa.table({"image": ["images/0.png"] * 2, "caption": text}), folder / "data.parquet")
    with pytest.raises(ManifestError, match="data row 2: column 'caption' is not UTF-8"):
        _load(folder / "data.parquet")


def test_csv_details(folder):
    content = '\ufeffimage,caption\n\nimages/0.png,"a ""red"", thing\nof two lines"\n\nimages/1.png,green,more\nimages/2.png\n'
    path = _csv_bytes(folder, content.encode())
    with pytest.raises(ManifestError, match=r"data row 2: 3 fields, the header has 2; quote"):
        _load(path)
    data = _load(path, on_error="skip")
    assert data.train[0].caption == 'a "red", thing of two lines'
    assert data.skipped == {"columns": 2}
    with pytest.raises(ManifestError, match=r"line 2: unexpected end of data; correct the quoting"):
        _load(_csv_bytes(folder, b'image,caption\nimages/0.png,"red\n'), on_error="skip")
    with pytest.raises(ManifestError, match=r"column 'image' occurs 2 times"):
        _load(_csv_bytes(folder, b"image,image,caption\n"))
    with pytest.raises(ManifestError, match=r"column 'image' occurs 0 times; found: none"):
        _load(_csv_bytes(folder, b""))


def test_long_fields_of_a_csv(folder, monkeypatch):
    path = _csv_bytes(folder, b"image,caption,other\nimages/0.png,red,x\n\nimages/1.png,green," + b"x" * 200_000 + b"\n")
    assert [_load(path).train[i].caption for i in range(2)] == ["red", "green"]
    before = csv.field_size_limit(1000)
    monkeypatch.setattr(records, "FIELD_CHARS", 1000)
    try:
        with pytest.raises(ManifestError, match=r"a field has more than 1,000 characters \(line 4\); shorten it, or close") as caught:
            _load(path, on_error="skip")
    finally:
        csv.field_size_limit(before)
    assert str(caught.value).startswith(f"{path}, data row 2: ")
    assert caught.value.kind == "syntax"


def test_jsonl_details(folder):
    lines = ['{"image": "images/0.png", "caption": "red", "id": 7}', "", "[1]", "{", '{"image": "images/0.png", "caption": 1.5, "id": 1}']
    lines += ['{"image": null, "caption": "red", "id": null}', "[" * 100_000, '{"image": "images/1.png", "caption": "red", "id": true}']
    (folder / "data.jsonl").write_text("\n".join(lines))
    seen = []
    data = load(
        dataclasses.replace(CONFIG, path=str(folder / "data.jsonl"), id_column="id", on_error="skip"),
        on_skip=lambda error: seen.append((error.row, error.kind)),
    )
    assert data.train[0].anchor_key == "7"
    assert seen == [(2, "syntax"), (3, "columns"), (4, "syntax"), (5, "columns"), (6, "missing"), (7, "syntax"), (8, "columns")]


def test_parquet_types(folder):
    image = pa.array(["images/0.png", None]).dictionary_encode()
    pq.write_table(pa.table({"image": image, "caption": pa.array(["red", "b"], pa.large_string()), "id": [1, 2]}), folder / "a.parquet")
    data = _load(folder / "a.parquet", id_column="id", on_error="skip")
    assert (data.train[0].anchor_key, data.skipped) == ("1", {"missing": 1})
    ids = pa.array([7.0, None, 1.5, float("nan"), 2.0**53])  # an integer column with a null, as pandas writes it, is one of floats
    pq.write_table(pa.table({"image": ["images/0.png"] * 5, "caption": ["red"] * 5, "id": ids}), folder / "c.parquet")
    data = _load(folder / "c.parquet", id_column="id", on_error="skip")
    assert [data.train[i].anchor_key for i in range(len(data.train))] == ["7", "images/0.png"]
    assert data.skipped == {"columns": 3}
    pq.write_table(pa.table({"image": ["images/0.png"], "caption": [["red"]]}), folder / "b.parquet")
    with pytest.raises(ManifestError, match="data row 1: column 'caption' holds a list"):
        _load(folder / "b.parquet")


def test_damaged_parquet_data_is_syntax(folder):
    path = folder / "data.parquet"
    table = pa.table({"image": [f"images/{i % 3}.png" for i in range(100)], "caption": [f"word {i}" for i in range(100)]})
    pq.write_table(table, path, compression="snappy", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[100:120] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"not a readable Parquet file \(.*snappy.*; write it again") as caught:
        _load(path, on_error="skip")
    assert caught.value.kind == "syntax"
    (folder / "a_folder.parquet").mkdir()
    for name in ("absent.parquet", "a_folder.parquet"):
        with pytest.raises(ManifestError, match="cannot be read") as caught:
            _load(folder / name)
        assert caught.value.kind == "missing"


def test_whole_files_that_cannot_be_used(folder):
    cases = {
        "absent.csv": "cannot be read .*No such file.*correct data.path",
        "absent.parquet": "cannot be read",
        "data.txt": r"unknown type '.txt'; use one of .csv, .jsonl, .parquet",
        "images": "unknown type ''",
    }
    for name, message in cases.items():
        with pytest.raises(ManifestError, match=message):
            _load(folder / name, on_error="skip")
    (folder / "x.csv").mkdir()
    with pytest.raises(ManifestError, match="cannot be read"):
        _load(folder / "x.csv")
    with pytest.raises(ConfigError, match=r"data.path = None.*\.csv, \.jsonl or \.parquet"):
        load(CONFIG)
    with pytest.raises(ManifestError, match="no row is left for training"):
        _load(_write(folder, "csv", []))
    with pytest.raises(ManifestError, match=r"no row is left for training.*'missing': 1"):
        _load(_write(folder, "csv", [("nothing.png", "c")]), on_error="skip")


@pytest.mark.parametrize("path", ["https://host/data.csv", "memory://data.jsonl", "s3://bucket/data.parquet"])
def test_a_remote_manifest_is_refused(path):
    with pytest.raises(DataError, match=rf"{path}: a manifest and its pictures are read from a local folder; copy") as caught:
        _load(path)
    assert caught.value.kind == "type"


def test_an_image_in_training_and_test_is_announced(folder, caplog):
    rows = [("images/0.png", "red", "train"), ("images/0.png", "crimson", "test")]
    _load(_write(folder, "csv", rows, ("image", "caption", "split")), split_column="split")
    assert "1 images are both in training and in a hold-out, such as 'images/0.png'" in caplog.text


def _only_known_outcomes(path, **fields):
    """A DataSet whose rows can be read, or an error that names the manifest."""
    with contextlib.suppress(ManifestError):  # any other error fails the test
        data = _load(path, **fields)
        assert isinstance(data, DataSet)
        assert all(data.train[i].caption for i in range(len(data.train)))


_FIELD = st.one_of(
    st.sampled_from(["images/0.png", "images/1.png", "red", "", "train", "test", "../x", "/etc/passwd", "\0", "a" * 300, '"', "\ud800"]),
    st.text(max_size=8),
)
_COLUMN = st.sampled_from(["image", "caption", "split", "id", "other"])
_OPTIONS = st.fixed_dictionaries(
    {"on_error": st.sampled_from(["raise", "skip"])},
    optional={"split_column": st.just("split"), "id_column": st.just("id")},
)


@FUZZ
@given(content=st.binary(max_size=300), kind=st.sampled_from(["csv", "jsonl", "parquet"]), options=_OPTIONS)
def test_fuzz_bytes(folder, content, kind, options):
    path = folder / f"fuzz.{kind}"
    path.write_bytes(content)
    _only_known_outcomes(path, **options)


@FUZZ
@given(lines=st.lists(st.lists(_FIELD, max_size=4), max_size=5), header=st.lists(_COLUMN, max_size=4), options=_OPTIONS)
def test_fuzz_csv(folder, lines, header, options):
    text = "\n".join(",".join(line) for line in [header, *lines])
    _only_known_outcomes(_csv_bytes(folder, text.encode("utf-8", "surrogatepass")), **options)


_JSON = st.one_of(_FIELD, st.none(), st.booleans(), st.integers(), st.floats(), st.lists(_FIELD, max_size=2))


@FUZZ
@given(records=st.lists(st.one_of(_JSON, st.dictionaries(_COLUMN, _JSON)), max_size=5), options=_OPTIONS)
def test_fuzz_jsonl(folder, records, options):
    (folder / "fuzz.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    _only_known_outcomes(folder / "fuzz.jsonl", **options)


_PARQUET_COLUMN = st.one_of(
    st.lists(st.one_of(st.none(), st.text(max_size=8), st.sampled_from(["images/0.png", "train"])), min_size=2, max_size=2),
    st.lists(st.one_of(st.none(), st.binary(max_size=8)), min_size=2, max_size=2),
    st.lists(st.integers(0, 9), min_size=2, max_size=2),
    st.lists(st.floats(), min_size=2, max_size=2),
    st.lists(st.lists(st.integers(0, 9), max_size=2), min_size=2, max_size=2),
)


@FUZZ
@given(
    columns=st.dictionaries(_COLUMN, _PARQUET_COLUMN, min_size=1),
    damage=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=2),
    options=_OPTIONS,
)
def test_fuzz_parquet(folder, columns, damage, options):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    content = bytearray(file.getvalue())
    for position, value in damage:
        content[position % len(content)] = value
    (folder / "fuzz.parquet").write_bytes(content)
    _only_known_outcomes(folder / "fuzz.parquet", **options)
