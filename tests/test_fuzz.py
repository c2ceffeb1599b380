"""2,800 damaged inputs over all readers: no crash, no hang, no other error than DataError with a documented kind, no silent loss.

Inputs: tar shards 600 (hostile names, links and devices among them), their indexes 240, journals of interrupted indexing 160, Parquet 480,
ArrayRecord 320 and its index.json 160, manifests 360 (CSV, JSONL, Parquet), pictures 360 (JPEG, PNG, WebP), tokenizers 120. 100 more of
TFDS are in peers/test_tfds_source.py. What is drawn depends on the numbers of the inputs alone.

Counts add up: each row that there was comes back, or is an error, or is in a file or shard that is told as a whole. What comes back differs
from what was written only where nothing stored could tell: bytes of a picture or caption in a tar shard, in a Parquet file without page
checksums, in a text manifest; pixels; a tokenizer's vocabulary.
"""

import contextlib
import csv
import dataclasses
import io
import json
import random
import tarfile
import warnings
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import damaged, in_time, kind_of
from PIL import Image

from bacl_jax.config import DataConfig
from bacl_jax.data import convert, load, tar_index, tar_scan, transforms
from bacl_jax.data.array_record import ArrayRecordFiles
from bacl_jax.data.parquet import ParquetFiles
from bacl_jax.data.stream import Record
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.data.webdataset import TarShards
from bacl_jax.errors import DataError

PARTS = range(4)  # each test is cut into so many, for several processes


def of_part(part, inputs):
    return range(part * inputs // len(PARTS), (part + 1) * inputs // len(PARTS))


def outcomes_of(records, expected, rows=None):
    """How often rows come back equal to `expected`, come back otherwise, or are an error of a kind."""
    found = Counter()
    for row in range(len(records) if rows is None else min(rows, len(records))):
        try:
            found["equal" if row < len(expected) and records[row] == expected[row] else "different"] += 1
        except DataError as error:
            named = bool(error.shard) and error.shard in str(error)
            found[kind_of(error) if named else f"{error.kind}, no shard named"] += 1
    assert not [kind for kind in found if "no shard" in kind]
    return found


# Tar shards

NAMES = [
    "../x.jpg",
    "/abs.txt",
    "a/../../b.jpg",
    ".jpg",
    "x",
    "..",
    "",
    "n\0ul.jpg",
    "ü.jpg",
    "x.jpg.txt",
    "a//b.png",
    "-.txt",
    "new\nline.txt",
    "\udce9.jpg",
    "c" * 300 + ".jpg",
]
TYPES = [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, b"Z"]
WHOLE_SHARD = {"truncated", "header", "trailing", "not_tar", "empty", "size"}


def add(archive, name, content, **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(content))


def picture(row):
    return random.Random(row).randbytes(50 + 97 * (row % 7))


def shard_of(first, rows, hostile=0, seed=0):
    """A tar shard of `rows` pairs and some members that nobody should trust."""
    draw, file = random.Random(seed), io.BytesIO()
    members = [(f"{row:04d}.{kind}", row) for row in range(first, first + rows) for kind in ("jpg", "txt")] + [("", None)] * hostile
    if hostile:
        draw.shuffle(members)
    with tarfile.open(fileobj=file, mode="w", format=draw.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as archive:
        for name, row in members:
            if row is not None:
                add(archive, name, picture(row) if name.endswith("jpg") else f"caption {row}".encode())
            else:
                kind = draw.choice(TYPES)
                content = draw.randbytes(draw.choice([0, 1, 600])) if kind in (tarfile.REGTYPE, b"Z") else b""
                add(archive, draw.choice(NAMES), content, type=kind, linkname="l")
    return file.getvalue()


def stems_of(content):
    """The stems that the standard library finds with a picture or a caption before it stops or complains."""
    found = set()
    with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=io.BytesIO(content), errorlevel=2) as archive:
        for info in archive:
            stem, extension = tar_scan.split(info.name)
            if not info.isdir() and extension in (*tar_scan.PICTURES, *tar_scan.CAPTIONS) and stem[-1:] not in ("", "/"):
                found.add(stem)
    return found


@pytest.mark.parametrize("part", PARTS)
def test_tar_shards(tmp_path, part):
    """Accepted and left-out rows are at least the stems that tarfile walks, or a damaged header is told; where the shard has no fault as a
    whole and no other hostile member they are exactly these. "raise" stops at one of the kinds that "skip" counts."""
    path, seen = tmp_path / "one.tar", Counter()
    for seed in of_part(part, 600):
        draw = random.Random(seed)
        whole = shard_of(0, draw.randrange(1, 8), draw.randrange(4), seed)
        content = whole if seed % 5 == 0 else damaged(whole, seed // 5)
        path.write_bytes(content)
        (tmp_path / tar_index.NAME).unlink(missing_ok=True)
        with in_time():
            index = tar_index.build(str(path), on_error="skip")
            stems, total = stems_of(content), len(index.rows) + index.left_out.total()
            assert total >= len(stems) or "header" in index.left_out, seed  # tarfile passes over some damage in pax headers
            if not WHOLE_SHARD & index.left_out.keys():
                others = sum(index.left_out[kind] for kind in ("name", "link", "special"))
                assert len(stems) <= total <= len(stems) + others, seed
            if index.left_out:
                with pytest.raises(DataError) as caught:
                    tar_index.build(str(path), on_error="raise")
                assert kind_of(caught.value) in index.left_out
            if len(index.rows):
                seen += _read_shard(TarShards(str(path)), content, stems)
        seen.update(index.left_out.keys())
    assert seen.keys() >= {"equal", "truncated", "header", "name", "link", "special", "no_image", "no_caption"}


def _read_shard(records, content, stems):
    found = Counter()
    for row in range(len(records)):
        try:
            record = records[row]
        except DataError as error:
            found[kind_of(error)] += 1
            continue
        stem = record.key.removeprefix("one.tar/")
        assert stem in stems
        assert record.image in content
        assert record.captions[0].removeprefix("\ufeff").encode() in content
        found["equal" if stem.isdecimal() and record.image == picture(int(stem)) else "different"] += 1
    return found


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        (tmp_path / f"{shard}.tar").write_bytes(shard_of(5 * shard, 5))
    return tmp_path


EXPECTED = [Record(picture(i), (f"caption {i}",), f"{i // 5}.tar/{i:04d}") for i in range(15)]


@pytest.mark.parametrize("part", PARTS)
def test_indexes_of_shards(shards, part):
    """Damage of header, table or length is told at opening, damage of a row when the row is read: never another row in its place."""
    tar_index.build(str(shards))
    index, seen = shards / tar_index.NAME, Counter()
    good = index.read_bytes()
    for seed in of_part(part, 240):
        index.write_bytes(
            damaged(good, seed) if seed % 2 else damaged(good[: 40 + 16 * 15], seed, 40)[: 40 + 16 * 15] + good[40 + 16 * 15 :]
        )
        with in_time():
            try:
                records = TarShards(str(shards))
            except DataError as error:
                seen[kind_of(error)] += 1
                continue
            found = outcomes_of(records, EXPECTED)
            assert (found.total(), found["different"]) == (15, 0), seed
            seen += found
    assert seen.keys() == {"index", "equal", "changed"}


@pytest.mark.parametrize("part", PARTS)
def test_journals_of_an_interrupted_indexing(shards, monkeypatch, part):
    """What the journal holds whole is used, the rest is indexed again; the index is the one that an undisturbed run makes."""
    unlink = tar_index.os.unlink
    monkeypatch.setattr(tar_index.os, "unlink", lambda path: None)
    tar_index.build(str(shards))
    monkeypatch.setattr(tar_index.os, "unlink", unlink)
    index, journal = shards / tar_index.NAME, shards / f"{tar_index.NAME}.partial"
    good, whole = index.read_bytes(), journal.read_bytes()
    for seed in of_part(part, 160):
        index.unlink()
        journal.write_bytes(damaged(whole, seed))
        with in_time():
            tar_index.build(str(shards))
        assert index.read_bytes() == good, seed
        assert not journal.exists()


# Parquet

ROWS = 40
PICTURES = [random.Random(i).randbytes(200 + i) for i in range(ROWS)]
TABLE = pa.table(
    {
        "jpg": pa.array(PICTURES, pa.binary()),
        "caption": [f"cäption {i}" for i in range(ROWS)],
        "key": [f"{i:09d}" for i in range(ROWS)],
        "image": [{"bytes": each, "path": "a.jpg"} for each in PICTURES],
        "captions": [["one", None, f"two {i}"] for i in range(ROWS)],
        "number": list(range(ROWS)),
    }
)
PLAIN = [Record(PICTURES[i], (f"cäption {i}",), f"{i:09d}") for i in range(ROWS)]
SEVERAL = [Record(PICTURES[i], ("one", f"two {i}"), str(i)) for i in range(ROWS)]


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_parquet(tmp_path, checksums, compression):
    """With page checksums a row is what was written, or an error."""
    file, path, seen = io.BytesIO(), tmp_path / "a.parquet", Counter()
    pq.write_table(TABLE, file, row_group_size=10, write_page_checksum=checksums, compression=compression)
    content = file.getvalue()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for seed in range(120):
        path.write_bytes(damaged(content, seed, footer if seed % 3 == 0 else 0))
        columns, expected = (("jpg", "caption", "key"), PLAIN) if seed % 2 else (("image", "captions", "number"), SEVERAL)
        with in_time():
            try:
                records = ParquetFiles(str(path), *columns)
            except DataError as error:
                seen[kind_of(error)] += ROWS
                continue
            found = outcomes_of(records, expected, 2 * ROWS)
        assert found.total() == ROWS, seed
        seen += found
    assert min(seen["syntax"], seen["equal"]) > 5 * ROWS
    assert not (checksums and seen["different"])


# ArrayRecord


@pytest.fixture
def folder(tmp_path):
    convert.write(PLAIN, tmp_path / "a", shard_rows=25)
    return tmp_path / "a"


@pytest.mark.parametrize("part", PARTS)
def test_array_record(folder, part):
    """Each row is what was written, or an error; the rows of the other file come back."""
    path, seen = folder / "a-00000-of-00002.array_record", Counter()
    content = path.read_bytes()
    written = len(content.rstrip(b"\0"))  # blocks of 64 KiB lie between the rows and the end
    for seed in of_part(part, 320):
        path.write_bytes(damaged(content[:written], seed) + content[written:] if seed % 2 else damaged(content, seed, len(content) - 65536))
        with in_time():
            found = outcomes_of(ArrayRecordFiles(str(folder)), PLAIN)
        assert (found.total(), found["different"]) == (ROWS, 0), seed
        assert found["equal"] >= 15
        seen += found
    assert seen.keys() == {"equal", "syntax", "checksum"}


@pytest.mark.parametrize("part", PARTS)
def test_indexes_of_array_record(folder, part):
    path, seen = folder / "index.json", Counter()
    content = path.read_bytes()
    for seed in of_part(part, 160):
        path.write_bytes(damaged(content, seed))
        with in_time():
            try:
                records = ArrayRecordFiles(str(folder))
            except DataError as error:
                seen[kind_of(error)] += 1
                continue
            found = outcomes_of(records, PLAIN)
        assert (found.total(), found["different"]) == (ROWS, 0), seed
        seen += found
    assert seen["syntax"] > 20


# Manifests


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_manifests(tmp_path, kind):
    """Rows that are read and rows that are left out are the rows that a plain reader of the format finds."""
    pairs = [(f"{i % 3}.png", f"grün, number {i}", "train" if i % 4 else "test") for i in range(20)]
    for i in range(3):
        Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    path, names, seen = tmp_path / f"data.{kind}", ("image", "caption", "split"), Counter()
    if kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([names, *pairs])
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, pair, strict=True)), ensure_ascii=False) + "\n" for pair in pairs))
    else:
        pq.write_table(pa.table(dict(zip(names, zip(*pairs, strict=True), strict=True))), path, write_page_checksum=True)
    content = path.read_bytes()
    config = DataConfig(kind="manifest", path=str(path), split_column="split", image_size=8)
    for seed in range(120):
        path.write_bytes(damaged(content, seed))
        with in_time():
            try:
                data = load(dataclasses.replace(config, on_error="skip"))
            except DataError as error:
                seen[kind_of(error)] += 1
                with pytest.raises(DataError) as caught:
                    load(config)
                kind_of(caught.value)
                continue
            sources = [data.train, *(split.source for split in data.splits.values())]
            rows = sum(map(len, sources))
            assert all(source[i].caption for source in sources for i in range(len(source)))
            assert rows + sum(data.skipped.values()) == _rows_in(path, kind), seed
            assert Counter(map(kind_of, data.left_out)) == data.skipped
            if data.skipped:
                with pytest.raises(DataError) as caught:
                    load(config)
                assert kind_of(caught.value) in data.skipped
        seen.update({"read": rows, **data.skipped})
    assert seen["read"] > 20 if kind == "parquet" else seen["read"] > 20 * 20


def _rows_in(path, kind):
    if kind == "csv":
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return sum(map(bool, csv.reader(file))) - 1
    if kind == "jsonl":
        return len(path.read_bytes().rstrip(b" \t\r\n\x0b\x0c").split(b"\n"))
    return pq.read_metadata(path).num_rows


# Pictures


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pictures(form):
    """A picture of at most the allowed size, or an error."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    file, seen = io.BytesIO(), Counter()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(np.kron(noise, np.ones((5, 5, 1), np.uint8))).save(file, form, exif=exif)
    for seed in range(120):
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's, of metadata that it passes over
            try:
                found = transforms.decode(damaged(file.getvalue(), seed, 0 if seed % 2 else 12), max_pixels=5000, max_side=32)
            except DataError as error:
                seen[kind_of(error)] += 1
                continue
        assert found.dtype == np.uint8
        assert found.shape[2] == 3
        assert min(found.shape[:2]) <= 32
        assert found.shape[0] * found.shape[1] <= 5000
        seen["read"] += 1
    assert seen.keys() <= {"read", "unreadable", "bomb"}
    assert seen["unreadable"] > 20


# Tokenizers


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_tokenizers(tmp_path, kind):
    """A tokenizer that encodes within its vocabulary, or an error."""
    captions = [f"a red square number {i} of {i % 7}" for i in range(60)]
    good, path, seen = Tokenizer.train(captions, DataConfig(tokenizer=kind, vocab_size=300)), tmp_path / "tokenizer.json", Counter()
    good.save(path)
    content = path.read_bytes()
    for seed in range(60):
        path.write_bytes(damaged(content, seed))
        with in_time():
            try:
                found = Tokenizer.load(path)
            except DataError as error:
                seen[kind_of(error)] += 1
                continue
            ids, mask = found.encode(captions)
            assert ids.shape == mask.shape == (60, found.context_length)
            seen["read"] += 1
    assert seen.keys() == {"read", "tokenizer"}
