"""What becomes of a bad row that is met while a run reads: an error that names kind and file, or a count by both and another row.

Faults that the indexing of tar shards finds (truncated, zero bytes, no caption, traversal, links, duplicates) are in test_webdataset.py,
those of manifests in test_manifest.py, whole runs over shards that vanish or fail in test_faulty_runs.py.
"""

import dataclasses
import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bacl_jax.config import Config
from bacl_jax.data import Tokenizer, convert, load, tar_index
from bacl_jax.data.faults import Faults, summary
from bacl_jax.data.loader import BatchBuilder
from bacl_jax.data.stream import Record
from bacl_jax.errors import DataError

ROWS, BAD, BATCH = 24, 13, 8


def encoded(form, row=0, size=(20, 16)):
    file = io.BytesIO()
    pixels = np.random.default_rng(row).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def announced(width, height):
    """A PNG whose header announces so many pixels, and which holds few."""
    png = encoded("PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


FAULTS = {
    # name: (picture, caption, kind)
    "corrupt JPEG": (encoded("JPEG")[:20] + b"\xff" * 300, "a caption", "unreadable"),
    "truncated JPEG": (encoded("JPEG")[:-200], "a caption", "unreadable"),
    "truncated PNG": (encoded("PNG")[:-200], "a caption", "unreadable"),
    "no picture": (b"<html>404</html>", "a caption", "unreadable"),
    "absurd dimensions": (announced(100_000, 100_000), "a caption", "bomb"),
    "a size without end": (announced(2**31 - 1, 2**31 - 1), "a caption", "bomb"),
    "a caption of spaces": (encoded("JPEG"), " \t\u200b", "empty_caption"),
    "another encoding": (encoded("JPEG"), "caf\udce9", "encoding"),
}


def rows_with(fault):
    picture, caption, _ = FAULTS[fault]
    good = [Record(encoded("JPEG", row), (f"number {row}",), f"{row:03d}") for row in range(ROWS)]
    return [*good[:BAD], Record(picture, (caption,), f"{BAD:03d}"), *good[BAD + 1 :]]


def as_tar(folder, records):
    with tarfile.open(folder / "0.tar", "w") as archive:
        for record in records:
            [caption] = record.captions
            for name, content in (("jpg", record.image), ("txt", caption.encode(errors="surrogateescape"))):
                info = tarfile.TarInfo(f"{record.key}.{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    tar_index.build(str(folder / "0.tar"))
    return "webdataset", folder / "0.tar", folder / "0.tar"


def as_parquet(folder, records):
    captions = pa.array([caption.encode(errors="surrogateescape") for record in records for caption in record.captions])
    texts = pa.StringArray.from_buffers(len(records), *captions.buffers()[1:])
    pq.write_table(pa.table({"image": [record.image for record in records], "caption": texts}), folder / "0.parquet")
    return "parquet", folder / "0.parquet", folder / "0.parquet"


def as_array_record(folder, records):
    convert.write(records, folder / "records")
    return "array_record", folder / "records", folder / "records" / "records-00000-of-00001.array_record"


FORMS = {"tar": as_tar, "parquet": as_parquet, "array_record": as_array_record}
CASES = [(form, fault) for form in FORMS for fault in FAULTS if (form, fault) != ("array_record", "another encoding")]  # it stores text


@pytest.fixture
def build(tmp_path):
    """build(form, fault, on_error): (a batch builder over rows of which one has the fault, its Faults, the file with that row)."""

    def build(form, fault, on_error):
        kind, path, file = FORMS[form](tmp_path, rows_with(fault))
        base = Config()
        data = dataclasses.replace(
            base.data, kind=kind, path=str(path), on_error=on_error, max_error_share=1.0, image_size=8, context_length=8
        )
        config = dataclasses.replace(base, data=data, train=dataclasses.replace(base.train, batch_size=BATCH))
        dataset = load(data)
        tokenizer = Tokenizer.train(dataset.training_captions(), data)
        faults = Faults(1.0, tmp_path / "data_errors.jsonl")
        builder = BatchBuilder(dataset, tokenizer, config, partners=None, partner_share=lambda step: 0.0, shard=((0,), 1), faults=faults)
        return builder, faults, str(file)

    return build


@pytest.mark.parametrize(("form", "fault"), CASES)
def test_raise_names_kind_and_file(build, form, fault):
    builder, _, file = build(form, fault, "raise")
    with pytest.raises(DataError) as caught:
        [builder(step) for step in range(ROWS // BATCH)]
    assert (caught.value.kind, caught.value.shard) == (FAULTS[fault][2], file)
    assert any(name in str(caught.value) for name in (f"{BAD:03d}", f"#{BAD}", f"row {BAD + 1}:"))


@pytest.mark.parametrize(("form", "fault"), CASES)
def test_skip_counts_by_kind_and_file_and_takes_another_row(build, form, fault, tmp_path):
    builder, faults, file = build(form, fault, "skip")
    batches = [builder(step)[1] for step in range(2 * ROWS // BATCH)]
    kind = FAULTS[fault][2]
    assert all(len(batch.index) == BATCH and BAD not in batch.index for batch in batches)
    assert set(faults.counts) == {(kind, file)}
    assert faults.counts.total() >= 2  # it is met once an epoch, and may be drawn in place of itself
    lines = [json.loads(line) for line in (tmp_path / "data_errors.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["shard"], line["row"]) for line in lines] == [(kind, file, BAD)] * faults.counts.total()
    assert summary(tmp_path) == [
        f"left out, {kind}: {faults.counts.total()}, in 1 files, most ({faults.counts.total()}) in {file}",
        f"each of them in {tmp_path}/data_errors.jsonl",
    ]


def test_what_could_not_be_used_before_is_replaced_again(tmp_path):
    """By whichever process of the stopped run it was met: they may be others, and as many, after it."""
    Faults(1.0, tmp_path / "data_errors.1.jsonl").add(DataError("gone", kind="remote", shard="a.tar"), step=3, position=5, row=7)
    (tmp_path / "data_errors.2.jsonl").write_text('{"step": 3, "posi')  # killed while it wrote
    resumed = Faults(1.0, tmp_path / "data_errors.jsonl")
    with pytest.raises(DataError, match="gone") as caught:
        resumed.repeat(step=3, position=5, row=7)
    assert (caught.value.kind, caught.value.shard) == ("remote", "a.tar")
    for place in ({"step": 4, "position": 5, "row": 7}, {"step": 3, "position": 4, "row": 7}, {"step": 3, "position": 5, "row": 8}):
        resumed.repeat(**place)
    assert resumed.counts.total() == 0  # it counts its own
    assert summary(tmp_path / "nowhere") == []


def test_a_share_of_bad_rows_that_is_just_the_limit_is_allowed():
    faults = Faults(0.05)
    faults.asked(1000)
    for row in range(50):
        faults.add(DataError("gone", kind="missing", shard="a.tar"), step=0, position=row, row=row)
    with pytest.raises(DataError, match=r"51 of 1,000 rows .* data\.max_error_share = 0\.05: most often 'missing' in a\.tar") as caught:
        faults.add(DataError("gone", kind="missing", shard="a.tar"), step=0, position=50, row=50)
    assert caught.value.kind == "too_many"


def test_what_was_left_out_at_the_start_is_written_once(tmp_path):
    path = tmp_path / "data_errors.jsonl"
    errors = [
        DataError("a row", kind="missing", shard="a.tar"),
        DataError("b row", kind="missing", shard="a.tar"),
        DataError("c", kind="bomb"),
    ]
    for count in (2, 3, 3):
        faults = Faults(1.0, path)
        faults.opened("", errors[:count])
        assert faults.counts.total() == count
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["error"]) for line in lines] == [(None, "a row"), (None, "b row"), (None, "c")]
    assert summary(tmp_path)[:2] == ["left out, missing: 2, in 1 files, most (2) in a.tar", "left out, bomb: 1"]


def test_files_that_cannot_be_opened_are_left_out_though_nobody_asks(tmp_path, caplog):
    """As launch.train opens them."""
    _, path, _ = as_parquet(tmp_path, rows_with("no picture"))
    (tmp_path / "1.parquet").write_bytes(path.read_bytes()[:-9])
    config = dataclasses.replace(Config().data, kind="parquet", path=str(tmp_path), on_error="skip", test_rows=ROWS - 1, holdout_seed=1)
    dataset = load(config)
    assert [(error.kind, error.shard) for error in dataset.left_out] == [("syntax", f"{tmp_path}/1.parquet"), ("unreadable", str(path))]
    assert len(dataset.splits["test"].source) == ROWS - 2
    assert "1.parquet, footer: not readable as Parquet" in caplog.text
    assert "2 left out: {'syntax': 1, 'unreadable': 1}" in caplog.text
    with pytest.raises(DataError, match=r"1\.parquet"):
        load(dataclasses.replace(config, on_error="raise"))


def test_messages_stay_one_printable_line():
    assert str(DataError("a\nb\x1b[31m \udce9 ü")) == "a b\\x1b[31m \\udce9 ü"
