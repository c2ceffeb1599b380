"""Data sets of tensorflow-datasets, without TensorFlow. Needs requirements-tfds.txt."""

import copy
import io
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzzing
import numpy as np
import pytest
import tensorflow_datasets as tfds
import test_workers
from PIL import Image

from bacl_jax.data import array_record, convert
from bacl_jax.data.stream import Record, Records
from bacl_jax.data.tfds_source import TfdsRows
from bacl_jax.errors import DataError

ROOT = Path(__file__).parents[2]
ROWS = 25


def _png(i):
    file = io.BytesIO()
    Image.new("RGB", (8, 9), (i, 0, 0)).save(file, "PNG")
    return file.getvalue()


class TinyPairs(tfds.core.GeneratorBasedBuilder):
    """Pairs with captions of every form. Encoded pictures need no TensorFlow to be stored."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "other": tfds.features.Image(encoding_format="png"),
            "caption": text,
            "texts": tfds.features.Sequence(text),
            "captions": tfds.features.Sequence({"text": text, "number": np.int64}),
            "id": np.int64,
            "name": text,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), description="pairs")

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(ROWS), "test": self._generate_examples(2)}

    def _generate_examples(self, rows):
        for i in range(rows):
            captions = [{"text": each, "number": i} for each in ("one", f"two {i}")[: 1 + i % 2]]
            texts = ["öne", f"two {i}"] if i else []
            picture = {"image": io.BytesIO(_png(i)), "other": io.BytesIO(b"no picture")}
            yield i, {**picture, "caption": f"cäption {i}", "texts": texts, "captions": captions, "id": i, "name": f"näme {i}"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    TinyPairs(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def _rows(folder, split="train", caption="caption", **options):
    return TfdsRows("tiny_pairs", split, caption_feature=caption, data_dir=str(folder), **{"key_feature": "id", **options})


def test_rows_are_what_was_prepared(prepared):
    found = _rows(prepared)
    assert isinstance(found, Records)
    assert sorted(found, key=lambda row: int(row.key)) == [Record(_png(i), (f"cäption {i}",), str(i)) for i in range(ROWS)]
    assert list(copy.deepcopy(found)) == list(found)
    assert list(TfdsRows(f"{prepared}/tiny_pairs/1.0.0", "train", key_feature="id")) == list(found)
    assert [row.key for row in _rows(prepared, "train[10:12]", key_feature=None)] == [f"tiny_pairs/train[10:12]#{i}" for i in (0, 1)]
    assert list(_rows(prepared, "train[10:12]")) == [found[10], found[11]]
    assert len(_rows(prepared, "train+test")) == ROWS + 2
    assert _rows(prepared, key_feature="name")[0].key == f"näme {found[0].key}"
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(found.__getitem__, [*range(ROWS)] * 20)) == list(found) * 20
    for index in (-1, ROWS):
        with pytest.raises(IndexError, match=f"row {index} of 25"):
            found[index]


def test_several_captions(prepared):
    found = {row.key: row.captions for row in _rows(prepared, caption="captions/text")}
    assert found == {str(i): ("one", f"two {i}")[: 1 + i % 2] for i in range(ROWS)}
    rows = _rows(prepared, caption="texts")
    bad = next(i for i in range(ROWS) if _rows(prepared)[i].key == "0")
    assert {rows[i].captions[0] for i in range(ROWS) if i != bad} == {"öne"}
    with pytest.raises(DataError, match=rf"array_record.*, row {bad + 1} of tiny_pairs/train: feature 'texts' holds no text") as caught:
        rows[bad]
    assert (caught.value.kind, Path(caught.value.shard).exists()) == ("empty_caption", True)


def test_what_cannot_be_used(prepared, tmp_path):
    cases = [
        ({"split": "nosplit"}, "missing", "Unknown split 'nosplit'"),
        ({"split": "train[:0]"}, "empty", "no row"),
        ({"caption": "text"}, "columns", "no feature 'text'; found: .*'caption'"),
        ({"image_feature": "jpg"}, "columns", "no feature 'jpg'"),
        ({"key_feature": "url"}, "columns", "no feature 'url'"),
        ({"caption": "captions/txt"}, "columns", r"row 1 of tiny_pairs/train: feature 'captions/txt' is not there"),
        ({"caption": "id"}, "columns", "feature 'id' holds a int"),
        ({"caption": "captions/number"}, "columns", "feature 'captions/number' holds a int"),
        ({"image_feature": "id"}, "columns", "feature 'id' holds a int.*, expected a picture as stored"),
    ]
    for options, kind, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            _rows(prepared, **options)[0]
        assert caught.value.kind == kind
    with pytest.raises(DataError, match=r"no_such_data_set.* not found") as caught:
        TfdsRows("no_such_data_set", "train", data_dir=str(prepared))
    assert (caught.value.kind, "\n" in str(caught.value)) == ("missing", False)
    with pytest.raises(DataError, match=r'download_and_prepare\(file_format="array_record"\)') as caught:
        _rows(tmp_path)
    assert caught.value.kind == "missing"
    shutil.copytree(prepared / "tiny_pairs" / "1.0.0", tmp_path / "other")
    description = tmp_path / "other" / "dataset_info.json"
    description.write_text(description.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        DataError, match=r"/train: Random access .*TFRECORD is not supported; prepare it with download_and_prepare\("
    ) as caught:
        TfdsRows(str(tmp_path / "other"), "train")
    assert caught.value.kind == "type"


def test_converted_to_array_record(prepared, tmp_path):
    convert.write(_rows(prepared), tmp_path / "a", shard_rows=10)
    assert list(array_record.ArrayRecordFiles(str(tmp_path / "a"))) == list(_rows(prepared))


def test_no_tensorflow_is_imported(prepared):
    program = (
        "import sys; from bacl_jax.data.tfds_source import TfdsRows; "
        f"assert len(TfdsRows({f'{prepared}/tiny_pairs/1.0.0'!r}, 'train')[3].image) > 50; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"needs tensorflow-datasets .*pip install -r requirements-tfds.txt") as caught:
        TfdsRows("tiny_pairs", "train")
    assert caught.value.kind == "missing"


def test_two_processes_read_what_one_reads(prepared):
    """Started anew: the readers of tensorflow-datasets have threads, which a fork does not take along."""
    [digests] = test_workers.read("spawn", f"tfds={prepared}/tiny_pairs/1.0.0").values()
    assert digests["own"] == digests["others"]
    assert len(set(digests["own"])) == ROWS


def test_damaged_files(prepared):
    """100 inputs; each row is what was prepared or a DataError: the format has checksums of its own."""
    good = list(_rows(prepared))
    [stored] = (prepared / "tiny_pairs" / "1.0.0").glob("*train*array_record*")
    content, outcomes = stored.read_bytes(), Counter()
    written = len(content.rstrip(b"\0"))
    try:
        for seed in range(100):
            stored.write_bytes(fuzzing.damaged(content[:written], seed) + content[written:])
            with fuzzing.in_time():
                found = _rows(prepared)
                for row in range(ROWS):
                    try:
                        outcomes["equal" if found[row] == good[row] else "different"] += 1
                    except DataError as error:
                        outcomes[fuzzing.kind_of(error)] += 1
        stored.unlink()
        with pytest.raises(DataError, match="cannot be read") as caught:
            _rows(prepared)[0]
        assert caught.value.kind == "missing"
    finally:
        stored.write_bytes(content)
    assert outcomes.total() == 100 * ROWS
    assert outcomes.keys() == {"equal", "checksum", "syntax"}
