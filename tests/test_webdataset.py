"""Tar shards, their index and its door: what was written is read, what is damaged is counted, and nothing is lost in silence."""

import io
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import loopback
import numpy as np
import pytest

from bacl_jax.data import storage, tar_index, tar_members, tar_scan
from bacl_jax.data.array_record import ArrayRecordFiles
from bacl_jax.data.sampler import Blocks
from bacl_jax.data.stream import Records
from bacl_jax.data.tar_index import Shard, build
from bacl_jax.data.webdataset import TarShards
from bacl_jax.errors import DataError

ROOT = Path(__file__).parents[1]


def picture(i, extra=0):
    return bytes([255, 216, i % 256]) * (50 + 97 * (i % 7)) + bytes(extra)


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def pair(stem, i=0, caption=None):
    return [member(f"{stem}.jpg", picture(i)), member(f"{stem}.txt", (f"caption {i}" if caption is None else caption).encode())]


def tar(entries, format=tarfile.PAX_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def shard(first, count=5):
    return tar([each for i in range(first, first + count) for each in pair(f"{i:09d}", i)])


@pytest.fixture
def shards(tmp_path):
    """Three shards of 5 rows, 00000.tar to 00002.tar."""
    for i in range(3):
        (tmp_path / f"{i:05d}.tar").write_bytes(shard(5 * i))
    return tmp_path


def content_of(records):
    return [(records[i].key, records[i].image, *records[i].captions) for i in range(len(records))]


EXPECTED = [(f"{i // 5:05d}.tar/{i:09d}", picture(i), f"caption {i}") for i in range(15)]


def one(tmp_path, content, on_error="skip"):
    """The index of a single shard with this content."""
    (tmp_path / "one.tar").write_bytes(content)
    return build(f"{tmp_path}/one.tar", on_error=on_error)


# Reading what was written


def test_rows_equal_what_was_written(shards):
    index = build(f"{shards}/{{00000..00002}}.tar")
    assert (len(index.rows), index.left_out) == (15, Counter())
    for path in (f"{shards}/{{00000..00002}}.tar", f"{shards}/{{00000,00001,00002}}.tar", str(shards), f"{shards}/*.tar"):
        records = TarShards(path)
        assert isinstance(records, Records)
        assert content_of(records) == EXPECTED
    for outside in (-1, 15):
        with pytest.raises(IndexError, match="15"):
            records[outside]


def test_some_of_the_indexed_shards_and_moved_folders(shards):
    build(str(shards))
    assert content_of(TarShards(f"{shards}/{{00002,00000}}.tar")) == EXPECTED[10:] + EXPECTED[:5]
    moved = shards.with_name("moved")
    shards.rename(moved)
    assert content_of(TarShards(str(moved))) == EXPECTED


def test_shards_of_one_name_in_two_folders_have_keys_of_their_own(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(shard(0, 1))
    build(f"{tmp_path}/{{a,b}}/0.tar")
    assert (tmp_path / tar_index.NAME).is_file()
    assert [TarShards(f"{tmp_path}/{{a,b}}/0.tar")[i].key for i in range(2)] == ["a/0.tar/000000000", "b/0.tar/000000000"]


LONG = "a" * 90 + "/" + "b" * 150


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_forms_of_names_members_and_captions(tmp_path, format):
    stem = LONG if format != tarfile.USTAR_FORMAT else "a" * 90 + "/" + "b" * 60
    uncommon = "ü/名前" if format == tarfile.PAX_FORMAT else "x/y"
    entries = [
        member("./", type=tarfile.DIRTYPE),
        *pair(f"./{stem}", 1),
        member(f"{uncommon}.WEBP", picture(2)),
        member(f"{uncommon}.json", json.dumps({"caption": "from json", "url": "u"}).encode()),
        member("z.png", picture(3)),
        member("z.json", b'{"caption": "not this"}'),
        member("z.txt", "\ufeffthis, ü".encode()),
        member("z.seg.png", b"not the picture"),
        member("z.cls", b"7"),
        member("README", b"no row"),
        member("later.txt", b"apart"),
        *pair("between", 4),
        member("later.jpeg", picture(5, 200_000)),
    ]
    index = one(tmp_path, tar(entries, format), on_error="raise")
    assert index.left_out == Counter()
    assert content_of(TarShards(f"{tmp_path}/one.tar")) == [
        (f"one.tar/{stem}", picture(1), "caption 1"),
        (f"one.tar/{uncommon}", picture(2), "from json"),
        ("one.tar/z", picture(3), "this, ü"),
        ("one.tar/later", picture(5, 200_000), "apart"),
        ("one.tar/between", picture(4), "caption 4"),
    ]


def test_picture_and_caption_far_apart_are_read_in_two_parts(tmp_path, monkeypatch):
    one(tmp_path, tar([member("a.jpg", picture(0)), member("big.cls", bytes(300_000)), member("a.txt", b"far"), *pair("b", 1)]))
    records, lengths = TarShards(f"{tmp_path}/one.tar"), []
    read = storage.Reader.read
    monkeypatch.setattr(storage.Reader, "read", lambda self, *span: lengths.append(span[2] - span[1]) or read(self, *span))
    assert records[0].captions == ("far",)
    assert lengths == [512 + len(picture(0)), 512 + 3]
    lengths.clear()
    assert records[1].captions == ("caption 1",)
    assert len(lengths) == 1


def test_threads_and_copies_read_the_same(shards, monkeypatch):
    build(str(shards))
    records = TarShards(str(shards))
    monkeypatch.setattr(storage, "_OPEN_FILES", 2)
    few = TarShards(str(shards))
    order = random.Random(0).choices(range(15), k=600)
    with ThreadPoolExecutor(8) as threads:
        for each in (records, few):
            assert [record.image for record in threads.map(each.__getitem__, order)] == [picture(i) for i in order]
    (shards / "00003.tar").write_bytes(shard(15))  # came later: no part of the data set that was opened
    copied = pickle.dumps(records)
    assert content_of(pickle.loads(copied)) == EXPECTED
    build(str(shards))
    with pytest.raises(DataError, match="was built anew while it was in use"):
        pickle.loads(copied)
    opened = Path("/proc/self/fd")
    before = len(list(opened.iterdir()))
    del records, few, each
    assert len(list(opened.iterdir())) < before  # descriptors are closed with the last user


# The index


def scanned(monkeypatch):
    """The names of the shards that are scanned from here on."""
    names, scan = [], tar_scan.scan
    monkeypatch.setattr(tar_scan, "scan", lambda location, name, size: names.append(name) or scan(location, name, size))
    return names


def test_a_finished_shard_is_not_scanned_again(shards, monkeypatch):
    names = scanned(monkeypatch)
    build(f"{shards}/{{00000..00001}}.tar")
    assert sorted(names) == ["00000.tar", "00001.tar"]
    names.clear()
    (shards / "00001.tar").write_bytes(shard(5, 4))  # of the same size: tar files are filled up to 10,240 bytes
    index = build(str(shards))
    assert sorted(names) == ["00001.tar", "00002.tar"]
    assert [each.rows for each in index.shards] == [5, 4, 5]
    assert content_of(TarShards(str(shards))) == EXPECTED[:9] + EXPECTED[10:]


@pytest.mark.parametrize("damage", [lambda b: b, lambda b: b[:-7], lambda b: b + b"SHRD\xff\xff", lambda b: b[:-20] + b"x" * 20])
def test_an_interrupted_run_goes_on(shards, monkeypatch, damage):
    """The run is stopped by an exception at the third shard; what the journal holds may be torn at its end."""
    scan, journal = tar_scan.scan, shards / f"{tar_index.NAME}.partial"

    def stopped(location, name, size):
        if name == "00002.tar":
            while journal.read_bytes().count(b"SHRD") < 2:
                time.sleep(0.001)
            raise KeyboardInterrupt
        return scan(location, name, size)

    with monkeypatch.context() as patch:
        patch.setattr(tar_scan, "scan", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(str(shards))
    assert not (shards / tar_index.NAME).exists()
    original = journal.read_bytes()
    journal.write_bytes(damage(original))
    names = scanned(monkeypatch)
    build(str(shards))
    kept = damage(original).startswith(original)
    assert len(names) == (1 if kept else 2)
    assert content_of(TarShards(str(shards))) == EXPECTED
    assert not journal.exists()


def test_killed_at_any_instant_the_index_is_whole_or_absent(shards, tmp_path_factory):
    """A process that dies at the k-th call that changes the disk; then the next one finishes the work."""
    code = (
        "import os, sys; from bacl_jax.data import tar_index; left = int(sys.argv[2])\n"
        "def dying(call):\n"
        "    def wrapped(*arguments):\n"
        "        global left; left -= 1\n"
        "        os._exit(9) if left < 0 else None\n"
        "        return call(*arguments)\n"
        "    return wrapped\n"
        "for name in ('fsync', 'replace', 'unlink'): setattr(os, name, dying(getattr(os, name)))\n"
        "for left in range(int(sys.argv[2])):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        tar_index.build(sys.argv[1]); os._exit(0)\n"
        "    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "    index = sys.argv[1] + '/shards.index'\n"
        "    assert not os.path.exists(index) or len(tar_index.read(index).rows) == 15\n"
        "    print(status, os.path.exists(index))\n"
        "    [os.path.exists(f) and os.remove(f) for f in (index, index + '.partial')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(shards), "9"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split("\n")[:-1]
    assert [line for line in outcomes if line.startswith(("9", "0"))][-1] == "0 True"
    assert "9 False" in outcomes
    assert "9 True" in outcomes


@pytest.mark.parametrize("change", ["shrunk", "grown", "gone", "damaged index", "cut index", "no index", "not held"])
def test_a_change_since_the_indexing_is_told_at_opening(shards, change):
    build(f"{shards}/{{00000..00001}}.tar")
    path, index = shards / "00001.tar", shards / tar_index.NAME
    table = index.read_bytes()
    kind, said, asked = "changed", f"00001.tar: .* bytes, {path.stat().st_size:,} when it was indexed; run launch.index again", "00001"
    if change == "shrunk":
        path.write_bytes(path.read_bytes()[:-512])
    elif change == "grown":
        path.write_bytes(path.read_bytes() + bytes(512))
    elif change == "gone":
        path.unlink()
        kind, said = "missing", "00001.tar: cannot be read"
    elif change == "not held":
        kind, said, asked = "index", "does not hold .*00002.tar; run launch.index again", "00002"
    else:
        kind, said = "index", {"damaged index": "is damaged", "cut index": "not a whole index", "no index": "no index"}[change]
        index.write_bytes(table[:-1] + b"x" if change == "damaged index" else table[:-1])
        if change == "no index":
            index.unlink()
    with pytest.raises(DataError, match=said) as error:
        TarShards(f"{shards}/{{00000..{asked}}}.tar")
    assert error.value.kind == kind
    assert error.value.shard


def test_two_builders_of_one_index_do_not_meet(shards, monkeypatch):
    scan = tar_scan.scan

    def while_another_builds(location, name, size):
        with pytest.raises(DataError, match="another process is building"):
            build(str(shards))
        return scan(location, name, size)

    monkeypatch.setattr(tar_scan, "scan", while_another_builds)
    assert len(build(str(shards)).rows) == 15


def test_a_million_rows_take_16_bytes_each_and_stay_in_the_file(tmp_path):
    out, count, each = str(tmp_path / "index"), 100, 10_000
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 2**32, (each, 4), np.uint32)
    names = [f"{i:05d}.tar" for i in range(count)]
    tar_index.write(out, ((Shard(name, 512, each), rows + np.uint32(i)) for i, name in enumerate(names)))
    assert os.path.getsize(out) <= 24 * count * each
    assert os.path.getsize(out) <= 16.1 * count * each
    tracemalloc.start()
    records = TarShards(f"{tmp_path}/{{00000..00099}}.tar", out, verify=False)
    for index in range(0, len(records), 997):
        place, row = records._locate(index)
        assert (place, row) == (index // each, index)
        assert records._rows[row].tolist() == (rows[index % each] + np.uint32(place)).tolist()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records) == 1_000_000
    assert peak < 2**20  # the rows' 16 MB were never copied
    assert not records._rows.flags.owndata


def test_look_up_with_shards_of_any_size(tmp_path):
    counts = [0, 300, 0, 0, 1, 255, 256, 0, 257, 1, 1, 0]
    out = str(tmp_path / "index")
    tar_index.write(out, ((Shard(f"{i}.tar", 0, n), np.full((n, 4), i, np.uint32)) for i, n in enumerate(counts)))
    records = TarShards(f"{tmp_path}/{{0..11}}.tar", out, verify=False)
    expected = [(i, sum(counts[:i]) + k) for i, n in enumerate(counts) for k in range(n)]
    assert [records._locate(index) for index in range(len(records))] == expected
    some = TarShards(f"{tmp_path}/{{8,1,4}}.tar", out, verify=False)
    assert [some._locate(i)[1] for i in range(len(some))] == [row for place in (8, 1, 4) for shard, row in expected if shard == place]


@pytest.mark.parametrize("bits", [(1, 0, False), (127, 2**24 - 1, True), (3, 77, False)])
def test_a_row_is_unpacked_as_it_was_packed(bits):
    gap, caption_size, is_json = bits
    head = 512 * (2**32 - 200)
    image = tar_members.Member("a.jpg", "file", head, head + 512 * gap, 2**32 - 1, 0)
    caption = tar_members.Member("a.txt", "file", 0, 512 * (2**32 - 1), caption_size, 0)
    row = np.array(tar_scan.pack(image, caption, is_json), np.uint32)
    assert tar_scan.unpack(row) == ((head, image.data, image.size), (caption.data, caption_size, is_json))


# Faults


def overwrite(content, position, new):
    return content[:position] + new + content[position + len(new) :]


def resized(content, header, field):
    """The size field of the header at this byte replaced, with a checksum that fits."""
    block = overwrite(content[header : header + 512], 124, field)
    block = overwrite(block, 148, b"%06o\0 " % (256 + sum(block) - sum(block[148:156])))
    return overwrite(content, header, block)


GOOD = pair("good", 1)
FAULTS = {
    # name: (content, kinds left out, rows kept)
    "truncated: no end": (tar(GOOD)[: 4 * 512], {"truncated": 1}, 1),
    "truncated: in a header": (tar(GOOD + pair("b"))[: 4 * 512 + 100], {"truncated": 1}, 1),
    "truncated: in a picture": (tar(GOOD + pair("b"))[: 5 * 512 + 20], {"truncated": 1}, 1),
    "truncated: in a caption": (tar(GOOD + pair("b"))[: 7 * 512 + 5], {"truncated": 1}, 1),
    "truncated: in another member": (tar([*GOOD, member("x.cls", bytes(9999))])[:-12000], {"truncated": 1}, 1),
    "past the end": (resized(tar(GOOD + pair("b")), 4 * 512, b"%011o\0" % 10**9), {"truncated": 1}, 1),
    "absurd size": (resized(tar(GOOD + pair("b")), 4 * 512, b"\x80" + b"\x7f" * 11), {"truncated": 1}, 1),
    "negative size": (resized(tar(GOOD + pair("b")), 4 * 512, b"\xff" * 11 + b"\x00"), {"size": 1}, 1),
    "size of letters": (resized(tar(GOOD + pair("b")), 4 * 512, b"zzz"), {"header": 1}, 1),
    "damaged header": (overwrite(tar(GOOD + pair("b")), 4 * 512 + 3, b"\xff"), {"header": 1}, 1),
    "two tars joined": (tar(GOOD) + tar(pair("b")), {"trailing": 1}, 1),
    "zero-byte picture": (tar([*GOOD, member("b.jpg"), member("b.txt", b"x")]), {"empty_image": 1}, 1),
    "zero-byte caption": (tar([*GOOD, member("b.jpg", b"x"), member("b.txt")]), {"empty_caption": 1}, 1),
    "no caption": (tar([*GOOD, member("b.jpg", b"x")]), {"no_caption": 1}, 1),
    "no picture": (tar([*GOOD, member("b.txt", b"x"), member("c.json", b"{}")]), {"no_image": 2}, 1),
    "duplicate": (tar(GOOD + pair("b") + pair("b")), {"duplicate": 1}, 1),
    "two pictures": (tar([*GOOD, *pair("b"), member("b.png", b"x")]), {"duplicate": 1}, 1),
    "traversal": (tar(GOOD + pair("../../b")), {"name": 1}, 1),
    "traversal inside": (tar(GOOD + pair("a/../../b")), {"name": 1}, 1),
    "absolute": (tar([*GOOD, *pair("/etc/b"), member("/etc/passwd", b"x")]), {"name": 2}, 1),
    "control characters": (tar(GOOD + pair("b\nc")), {"name": 1}, 1),
    "name not UTF-8": (tar(GOOD + pair("caf\udce9"), tarfile.GNU_FORMAT), {"name": 1}, 1),
    "symlink": (tar([*GOOD, member("b.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), member("b.txt", b"x")]), {"link": 1}, 1),
    "hard link": (tar([*GOOD, member("b.jpg", type=tarfile.LNKTYPE, linkname="good.jpg"), member("b.txt", b"x")]), {"link": 1}, 1),
    "device": (tar([*GOOD, member("b.jpg", type=tarfile.CHRTYPE), member("pipe", type=tarfile.FIFOTYPE)]), {"special": 2}, 1),
    "caption too large": (tar([*GOOD, member("b.jpg", b"x"), member("b.txt", bytes(2**24))]), {"size": 1}, 1),
    "no tar": (b"<html>not found</html>" * 100, {"not_tar": 1}, 0),
    "short": (b"x", {"not_tar": 1}, 0),
    "zero bytes": (b"", {"empty": 1}, 0),
    "no members": (tar([]), {"empty": 1}, 0),
    "only a folder": (tar([member("a", type=tarfile.DIRTYPE)]), {"empty": 1}, 0),
    "negative pax size": (tar([*GOOD, member("b.jpg", b"x", pax_headers={"size": "-1024"})]), {"header": 1}, 1),
    "extended header too long": (tar([*GOOD, member("b.jpg", b"x", pax_headers={"comment": "c" * 70_000})]), {"header": 1}, 1),
    "sparse": (tar([*GOOD, member("b.jpg", b"x", pax_headers={"GNU.sparse.major": "1"}), member("b.txt", b"x")]), {"special": 1}, 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_left_out_by_kind_or_stop_the_indexing(tmp_path, fault):
    content, left_out, rows = FAULTS[fault]
    index = one(tmp_path, content)
    assert (dict(index.left_out), len(index.rows)) == (left_out, rows)
    assert index.shards[0].examples.keys() == left_out.keys()
    if rows:
        record = TarShards(f"{tmp_path}/one.tar")[0]
        assert (record.image, record.captions, record.key) == (picture(1), ("caption 1",), "one.tar/good")
    else:
        with pytest.raises(DataError, match="no row in these shards"):
            TarShards(f"{tmp_path}/one.tar")
    with pytest.raises(DataError, match=r"shard one\.tar: .*--on_error=skip") as error:
        one(tmp_path, content, on_error="raise")  # though the index that skips is there
    assert (error.value.kind, error.value.shard) == (next(iter(left_out)), "one.tar")
    assert len(str(error.value).splitlines()) == 1


def test_every_kind_is_described(tmp_path):
    assert {kind for _, kinds, _ in FAULTS.values() for kind in kinds} == set(tar_scan.REMEDIES)


def test_a_shard_that_is_missing_when_indexed_and_comes_later(shards):
    path = f"{shards}/{{00000..00003}}.tar"
    with pytest.raises(DataError, match=r"00003.tar: cannot be read") as error:
        build(path)
    assert error.value.kind == "missing"
    assert dict(build(path, on_error="skip").left_out) == {"missing": 1}
    assert content_of(TarShards(path)) == EXPECTED
    (shards / "00003.tar").write_bytes(shard(15))
    with pytest.raises(DataError, match="could not be read when it was indexed"):
        TarShards(path)
    build(path)
    assert len(TarShards(path)) == 20


@pytest.mark.parametrize("change", ["vanished", "shrunk", "another", "zeros", "another caption"])
def test_a_shard_that_changes_while_it_is_read(shards, change):
    build(str(shards))
    records, path = TarShards(str(shards)), shards / "00001.tar"
    content = path.read_bytes()
    path.unlink()
    if change != "vanished":
        caption = overwrite(content, content.index(b"000000009.txt"), b"\1" * 512)
        path.write_bytes({"shrunk": content[:9000], "another": shard(6), "zeros": bytes(len(content)), "another caption": caption}[change])
    with pytest.raises(DataError, match=r"00001\.tar") as error:
        records[9]
    assert (error.value.kind, error.value.shard) == ("missing" if change == "vanished" else "changed", str(path))
    assert records[4].key == EXPECTED[4][0]


@pytest.mark.parametrize("name", ["a.json", "b.txt", "c.txt"])
def test_a_caption_of_another_stem_or_form_is_refused(tmp_path, name):
    """The shard was written again: members of the same places and sizes, other names."""
    captions = {"a.txt": b"of a", "b.txt": b"of b"}
    parts = [[member(f"{i}.jpg", picture(0)), member(f"{i}.txt", captions[f"{i}.txt"])] for i in "ab"]
    one(tmp_path, tar(parts[0] + parts[1]))
    records = TarShards(f"{tmp_path}/one.tar")
    (tmp_path / "one.tar").write_bytes(tar([parts[0][0], member(name, captions["a.txt"]), *parts[1]]))
    with pytest.raises(DataError, match=rf"one\.tar: changed since it was indexed \(picture 'a' and caption '{name}'\)") as caught:
        records[0]
    assert caught.value.kind == "changed"
    assert records[1].captions == ("of b",)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("b.txt", b"caf\xe9", "encoding"),
        ("b.json", b'{"caption": "caf\xe9"}', "encoding"),
        ("b.json", b'{"caption": "\\ud800"}', "encoding"),
        ("b.json", b'{"caption": ', "syntax"),
        ("b.json", b"[" * 100_000, "syntax"),
        ("b.json", b'{"caption": null}', "no_caption"),
        ("b.json", b"[1]", "no_caption"),
    ],
)
def test_captions_that_cannot_be_read(tmp_path, name, content, kind):
    one(tmp_path, tar([member("b.jpg", b"x"), member(name, content)]), on_error="raise")
    with pytest.raises(DataError, match=r"one\.tar, row 'b': ") as error:
        TarShards(f"{tmp_path}/one.tar")[0]
    assert (error.value.kind, error.value.shard) == (kind, f"{tmp_path}/one.tar")


# Remote shards


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    for i in range(3):
        system.pipe(f"/shards/{i:05d}.tar", shard(5 * i))
    yield system
    system.rm("/shards", recursive=True)


def test_remote_shards_through_fsspec(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BACKOFF", 0)
    out = str(tmp_path / "index")
    with pytest.raises(DataError, match=r"is remote; give the index a local path"):
        build("memory://shards/*.tar")
    build("memory://shards/{00000..00002}.tar", out, workers=4)
    for path in ("memory://shards/{00000..00002}.tar", "memory://shards", "memory://shards/*.tar"):
        assert content_of(TarShards(path, out)) == EXPECTED
    records = TarShards("memory://shards", out)
    memory.rm("/shards/00002.tar")
    with pytest.raises(DataError, match="not found") as error:
        records[14]
    assert (error.value.kind, error.value.shard.rpartition("/")[2]) == ("missing", "00002.tar")


@pytest.fixture
def server(monkeypatch):
    with loopback.serving(monkeypatch) as running:
        running.files = {f"/{i:05d}.tar": shard(5 * i) for i in range(3)}
        yield running


def test_a_block_shuffle_asks_for_pages_in_place_of_rows(server, tmp_path, monkeypatch):
    """An epoch of 15 rows in 3 shards of some 20 kB: each page is requested once or twice, and each row comes once."""
    monkeypatch.setattr(storage, "PAGE_BYTES", 10_000)
    path, out = server.url + "/{00000..00002}.tar", str(tmp_path / "index")
    build(path, out)
    pages = sum(-(-len(content) // 10_000) for content in server.files.values())
    blocks, requests = Blocks(rows=5, window=5, lanes=1), []
    for keep_bytes in (0, 40_000):
        records = TarShards(path, out, keep_bytes=keep_bytes)
        server.requests.clear()
        keys = [records[int(row)].key for step in range(5) for row in blocks.batch_rows(0, step, 3, 15, ())]
        assert sorted(keys) == sorted(key for key, *_ in EXPECTED)
        requests.append(len(server.requests))
    assert requests[0] == 15
    assert requests[1] <= pages < 10
    copy = pickle.loads(pickle.dumps(records))
    server.requests.clear()
    assert [copy[row].key for row in range(5)] == [key for key, *_ in EXPECTED[:5]]
    assert len(server.requests) <= 3


def test_remote_shards_over_http(server, tmp_path):
    path, out = server.url + "/{00000..00002}.tar", str(tmp_path / "index")
    build(path, out, workers=4)
    records = TarShards(path, out)
    assert content_of(records) == EXPECTED
    server.requests.clear()
    assert records[3].key == EXPECTED[3][0]
    assert len(server.requests) == 1

    server.files["/00001.tar"] = server.files["/00001.tar"][:-1]
    with pytest.raises(DataError, match=r"00001\.tar: .* when it was indexed") as error:
        TarShards(path, out)
    assert error.value.kind == "changed"
    del server.files["/00002.tar"]
    with pytest.raises(DataError, match="not found") as error:
        records[14]
    assert error.value.kind == "missing"


def test_remote_shards_that_cannot_be_indexed(server, tmp_path):
    path, out = server.url + "/{00000..00004}.tar", str(tmp_path / "index")
    server.files["/00003.tar"] = b""
    assert dict(build(path, out, on_error="skip").left_out) == {"missing": 1, "empty": 1}
    assert content_of(TarShards(path, out)) == EXPECTED
    server.ranges = False
    assert dict(build(path, out, on_error="skip").left_out) == {"remote": 4, "missing": 1}
    with pytest.raises(DataError, match="does not answer range requests"):
        build(path, out)
    server.ranges = True
    build(server.url + "/{00000..00002}.tar", out)  # what could not be read is asked for again
    assert len(TarShards(server.url + "/{00000..00002}.tar", out)) == 15


# The door


def launch(*arguments):
    command = [sys.executable, "-m", "launch.index", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False)


def test_the_door_with_processes_does_what_threads_do(shards):
    (shards / "00003.tar").write_bytes(FAULTS["no caption"][0])
    done = launch(f"--path={shards}/{{00000..00003}}.tar", f"--out={shards}/here/index", "--workers=2", "--on_error=skip")
    assert done.returncode == 0, done.stderr
    assert "16 rows in 4 shards" in done.stdout
    assert "left out, no_caption: 1 in 1 shards, as shard 00003.tar: 'b' has no caption" in done.stdout
    build(str(shards), on_error="skip")
    assert (shards / "here" / "index").read_bytes() == (shards / tar_index.NAME).read_bytes()
    assert len(TarShards(str(shards), f"{shards}/here/index")) == 16


def test_the_door_converts_shards_to_array_record(shards, tmp_path):
    build(str(shards))
    done = launch(f"--path={shards}", "--convert=array_record", f"--out={tmp_path}/records")
    assert done.returncode == 0, done.stderr
    assert "15 rows in 1 files" in done.stdout
    converted, records = ArrayRecordFiles(f"{tmp_path}/records"), TarShards(str(shards))
    assert [converted[i] for i in range(15)] == [records[i] for i in range(15)]
    assert converted[0].shard.endswith(".array_record")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--path must be given"),
        (["--path={bad}"], "'b' has no caption"),
        (["--path={bad}", "--convert=array_record"], "--out must be given with --convert"),
        (["--path={bad}", "--kind=parquet"], "--kind=parquet without --convert"),
        (["--kind=manifest", "--convert=array_record", "--out=records"], "--path must be given"),
        (["--kind=emoji", "--split=all", "--convert=array_record", "--out=records"], "data.split = 'all'; allowed for the emoji: train"),
    ],
)
def test_bad_use_is_one_line_and_exit_code_2(tmp_path, arguments, said):
    (tmp_path / "bad.tar").write_bytes(FAULTS["no caption"][0])
    done = launch(*(argument.format(bad=tmp_path / "bad.tar") for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
