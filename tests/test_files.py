"""What a path stands for: one reader of paths for all kinds of files."""

import itertools
import uuid

import fsspec
import pytest

from bacl_jax.data import files
from bacl_jax.data.files import expand
from bacl_jax.errors import DataError


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
    assert _names(folder, "**/[13].parquet") == ["a/1.parquet", "b/deep/3.parquet"]
    assert _names(folder, "*/deep") == ["b/deep/3.parquet"]
    assert _names(folder, "{b,a}") == ["b/deep/3.parquet", "a/0.parquet", "a/1.parquet", "a/10.parquet"]
    assert _names(folder, "{a/{0..1},b/deep/3}.parquet") == ["a/0.parquet", "a/1.parquet", "b/deep/3.parquet"]
    (folder / "a[1].parquet").write_bytes(b"x")
    assert _names(folder, "a[1].parquet") == ["a[1].parquet"]


def test_relative_paths_stay_so_and_file_urls_are_local(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for path in ("a", "a/*.parquet", "a/{0,1,10}.parquet"):
        assert expand(path, ".parquet") == ["a/0.parquet", "a/1.parquet", "a/10.parquet"]
    assert expand(f"file://{folder}/b", ".parquet") == [f"{folder}/b/deep/3.parquet"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s/{8..11}.tar", ["s/8.tar", "s/9.tar", "s/10.tar", "s/11.tar"]),
        ("s/{08..10}.tar", ["s/08.tar", "s/09.tar", "s/10.tar"]),
        ("s/{2..0}.tar", ["s/2.tar", "s/1.tar", "s/0.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{a{0..1},b}.tar", ["a0.tar", "a1.tar", "b.tar"]),
        ("http://host/{0..1}.tar?x=[1*]", ["http://host/0.tar?x=[1*]", "http://host/1.tar?x=[1*]"]),
        ("s/1.tar", ["s/1.tar"]),
    ],
)
def test_braces_keep_their_order_and_are_not_looked_up(path, expected):
    assert expand(path, ".tar") == expected


def test_many_remote_names_take_no_request():
    found = expand("s3://bucket/{00000..41454}.tar", ".tar")  # there is no client for s3 here
    assert (len(found), found[-1]) == (41455, "s3://bucket/41454.tar")


def test_urls():
    name = uuid.uuid4().hex
    system = fsspec.filesystem("memory")
    for file in ("x/0.parquet", "x/1.parquet", "y/2.parquet", "y/_2.parquet", "y/note.txt"):
        system.pipe(f"/{name}/{file}", b"x")
    assert expand(f"memory://{name}/x/0.parquet", ".parquet") == [f"memory://{name}/x/0.parquet"]
    for path in ("", "*/", "{x,y}", "{x/*,y/2}.parquet"):
        found = [each.rpartition(f"{name}/")[2] for each in expand(f"memory://{name}/{path}", ".parquet")]
        assert found == ["x/0.parquet", "x/1.parquet", "y/2.parquet"]


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("nothing", "missing", "nothing: no such file or folder; correct the path"),
        ("*.parquet", "missing", r"\*.parquet: no file that ends in .parquet there"),
        ("b", "missing", r"b: no file that ends in .tar there"),
        ("b/deep/{x}.parquet", "path", r"\{x\} is neither \{first..last\} nor \{one,other\}"),
        ("{a,b", "path", "a brace that is not closed or not opened"),
        ("a}", "path", "a brace that is not closed or not opened"),
        ("{a,a}/1.parquet", "path", "names 1 files twice; name each once"),
        ("{a,a/1.parquet}", "path", "names 1 files twice"),
        ("{0..99999999999}.parquet", "path", "stand for more than 1,000 names"),
        ("{0..99}{0..99}.parquet", "path", "stand for more than 1,000 names"),
    ],
)
def test_paths_that_cannot_be_used(folder, path, kind, message, monkeypatch):
    monkeypatch.setattr(files, "LIMIT", 1000)
    with pytest.raises(DataError, match=message) as caught:
        expand(f"{folder}/{path}", ".tar" if path == "b" else ".parquet")
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("nosuchscheme://a/b.parquet", "path", "Protocol not known"),
        ("nosuchscheme://a/*.parquet", "path", "Protocol not known"),
        ("memory://nothing/*.parquet", "missing", "no file that ends in .parquet there"),
        ("http://host/*.parquet", "path", "http servers list no files"),
        ("https://host/folder/", "path", "http servers list no files"),
    ],
)
def test_urls_that_cannot_be_used(path, kind, message):
    with pytest.raises(DataError, match=message) as caught:
        expand(path, ".parquet")
    assert caught.value.kind == kind


def test_common_folders():
    cases = {("s/0.tar", "s/1.tar"): "s/", ("a/0.tar", "b/0.tar"): "", ("/x/a/0", "/x/b/c/0"): "/x/", ("0.tar",): ""}
    for locations, common in cases.items():
        for order in itertools.permutations(locations):
            assert files.common_folder(order) == common
            assert files.below_common_folder(order) == [each.removeprefix(common) for each in order]
