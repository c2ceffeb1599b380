import uuid

import fsspec
import pytest

from bacl_jax.data.files import expand, is_local
from bacl_jax.data.source import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("a/0.parquet", "a/1.parquet", "a/10.parquet", "a/note.txt", "a/.hidden.parquet", "a/_tmp/2.parquet", "b/deep/3.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def _names(folder, path, suffix=".parquet"):
    return [name.removeprefix(f"{folder}/") for name in expand(f"{folder}/{path}", suffix)]


def test_files_folders_patterns_and_braces(folder):
    assert _names(folder, "a/1.parquet") == ["a/1.parquet"]
    assert _names(folder, "a/note.txt") == ["a/note.txt"]  # a file that is named is taken, whatever its ending
    assert _names(folder, "a") == _names(folder, "a/") == ["a/0.parquet", "a/1.parquet", "a/10.parquet"]
    assert _names(folder, "") == ["a/0.parquet", "a/1.parquet", "a/10.parquet", "b/deep/3.parquet"]
    assert _names(folder, "*/1*.parquet") == ["a/1.parquet", "a/10.parquet"]
    assert _names(folder, "{b,a}") == ["a/0.parquet", "a/1.parquet", "a/10.parquet", "b/deep/3.parquet"]
    assert _names(folder, "{a/{0..1},b/deep/3}.parquet") == ["a/0.parquet", "a/1.parquet", "b/deep/3.parquet"]
    assert _names(folder, "{a,a}/1.parquet") == ["a/1.parquet"]


def test_ranges_keep_their_zeros_and_are_not_looked_up():
    assert expand("/nowhere/{08..11}.tar", ".tar") == [f"/nowhere/{n}.tar" for n in ("08", "09", "10", "11")]
    assert expand("/nowhere/{8..10}.tar", ".tar") == ["/nowhere/10.tar", "/nowhere/8.tar", "/nowhere/9.tar"]
    assert expand("s3://bucket/{00000..41454}.tar", ".tar")[-1] == "s3://bucket/41454.tar"


def test_urls():
    name = uuid.uuid4().hex
    system = fsspec.filesystem("memory")
    for file in ("x/0.parquet", "x/1.parquet", "y/2.parquet"):
        system.pipe(f"/{name}/{file}", b"x")
    assert expand(f"memory://{name}/x/0.parquet", ".parquet") == [f"memory://{name}/x/0.parquet"]
    for path in ("", "*/", "{x,y}", "*/*.parquet"):
        found = expand(f"memory://{name}/{path}", ".parquet")
        assert found == [f"memory:///{name}/{file}" for file in ("x/0.parquet", "x/1.parquet", "y/2.parquet")]
    assert not is_local(found[0])
    assert is_local("/a/b")


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("nothing", "missing", "nothing: no such file or folder; correct the path"),
        ("*.parquet", "missing", r"\*.parquet: no file that ends in .parquet there"),
        ("b/deep/{x}.parquet", "syntax", r"\{x\} is neither \{first..last\} nor \{one,other\}"),
        ("{a,b", "syntax", "a brace that is not closed or not opened"),
        ("a}", "syntax", "a brace that is not closed or not opened"),
        ("{5..1}.parquet", "syntax", r"\{5..1\} counts down; write \{1..5\}"),
        ("{0..99999999999}.parquet", "syntax", "stand for more than 10,000,000 names"),
    ],
)
def test_paths_that_stand_for_nothing(folder, path, kind, message, monkeypatch):
    if "999" in path:
        monkeypatch.setattr("bacl_jax.data.files.LIMIT", 1000)
        message = message.replace("10,000,000", "1,000")
    with pytest.raises(DataError, match=message) as caught:
        expand(f"{folder}/{path}", ".parquet")
    assert caught.value.kind == kind


@pytest.mark.parametrize("path", ["nosuchscheme://a/b.parquet", "nosuchscheme://a/*.parquet"])
def test_schemes_that_cannot_be_read(path):
    with pytest.raises(DataError, match=r"nosuchscheme://a/.*Protocol not known") as caught:
        expand(path, ".parquet")
    assert caught.value.kind == "missing"
