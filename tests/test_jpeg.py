"""JPEG files: what simplejpeg gives is what Pillow gives, errors included, and a crop is decoded no larger than it needs."""

import contextlib
import io
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from bacl_jax.data import transforms
from bacl_jax.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of odd metadata

WHOLE = 10**6  # max_side: nothing is shrunk
OPTIONS = {
    "420": {},
    "422": {"subsampling": 1},
    "444": {"subsampling": 0},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "rgb": {"keep_rgb": True},
    "grey": {},
    "cmyk": {},
}


def picture(width=203, height=151):
    """Smooth colours with an edge and some noise."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 9) * (y > height // 3)], axis=-1)
    return Image.fromarray((pixels + np.random.default_rng(0).normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8))


def jpeg(kind="420", image=None, **more):
    image, file = image or picture(), io.BytesIO()
    image = image.convert({"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB"))
    image.save(file, "JPEG", quality=90, **OPTIONS[kind], **more)
    return file.getvalue()


FILES = {kind: jpeg(kind) for kind in OPTIONS}


def decode(content, max_side=WHOLE):
    return transforms.decode(content, max_pixels=10**6, max_side=max_side)


def encoded(content, max_pixels=10**6):
    return transforms.Encoded(content, "a.tar/7", "a.tar", max_pixels, 64)


@contextlib.contextmanager
def pillow_alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "_simplejpeg", lambda content, size, eighths: None)
        yield


def outcome(content):
    """The pixels, or kind and message of the error."""
    try:
        return decode(content)
    except DataError as error:
        return error.kind, str(error)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_pixels_are_pillows(kind, shrink):
    with Image.open(io.BytesIO(FILES[kind])) as image, Image.open(io.BytesIO(FILES[kind])) as other:
        found, zoom = transforms._pixels(image, FILES[kind], shrink)
        if shrink > 1:
            other.draft("RGB", (203 // shrink, 151 // shrink))
        expected = np.asarray(other.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert zoom == 1 / shrink


@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if kind != "cmyk"])
def test_simplejpeg_reads_all_but_cmyk(kind):
    assert transforms._simplejpeg(FILES[kind], (203, 151), 8) is not None
    assert transforms._simplejpeg(FILES["cmyk"], (203, 151), 8) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_whole_and_crop(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(exif=exif)
    with pillow_alone():
        expected = decode(content)
    np.testing.assert_array_equal(decode(content), expected)
    assert expected.shape[:2] == ((203, 151) if orientation > 4 else (151, 203))
    found = encoded(content).crop(64, lambda width, height: transforms.Window(0.1 * width, 0.2 * height, 70, 70), "bilinear")
    height, width = expected.shape[:2]
    where = lambda *_: transforms.Window(0.1 * width, 0.2 * height, 70, 70)  # noqa: E731
    np.testing.assert_array_equal(found, transforms.crop(expected, 64, where))


@pytest.mark.parametrize("library", [contextlib.nullcontext, pillow_alone])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_part_of_a_turned_picture_lies_where_it_does_when_all_is_decoded(orientation, library):
    """Brightness tells the place: 0.6 of a pixel of the picture at an eighth is 5 of the stored one."""
    y, x = np.mgrid[:155, :203]
    plain, exif = Image.fromarray(np.stack([x, y, x], axis=-1).astype(np.uint8)), Image.Exif()
    exif[0x0112] = orientation
    content = jpeg("444", plain, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        whole = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    for where in (
        lambda width, height: transforms.Window(0, 0, width, height),
        lambda width, height: transforms.Window(width - 130, height - 130, 130, 130),
        lambda width, height: transforms.Window(20, 11, 130, 130, flip=True),
    ):
        with library():
            found = encoded(content).crop(16, where, "bilinear")
        off = (found.astype(int) - transforms.crop(whole, 16, where))[1:-1, 1:-1]
        assert np.abs(off.mean(axis=(0, 1))).max() < 0.8, off.mean(axis=(0, 1))


@pytest.mark.parametrize("exif", [b"no TIFF", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\xff\1\x12\0\3"])
@pytest.mark.parametrize("library", [contextlib.nullcontext, pillow_alone])
def test_damaged_exif_makes_no_damaged_picture(exif, library):
    content = jpeg(exif=b"Exif\0\0" + exif)
    with library():
        np.testing.assert_array_equal(decode(content), decode(FILES["420"]))
        found, expected = (encoded(each).crop(64, transforms.square, "bilinear") for each in (content, FILES["420"]))
    np.testing.assert_array_equal(found, expected)


def test_a_truncated_file_is_unreadable_wherever_it_is_cut():
    content = FILES["420"]
    for cut in (*range(1, 40), *range(40, len(content), 97)):
        with pytest.raises(DataError) as caught:
            decode(content[:-cut])
        assert caught.value.kind == "unreadable"
        with pytest.raises(DataError, match=r"^a.tar/7: not a readable image") as caught:
            encoded(content[:-cut]).crop(32, transforms.square, "bicubic")
        assert (caught.value.kind, caught.value.shard) == ("unreadable", "a.tar")


def test_twelve_bits_are_unreadable():
    content = bytearray(FILES["420"])
    content[content.index(b"\xff\xc0") + 4] = 12  # bits a sample
    with pytest.raises(DataError) as caught:
        decode(bytes(content))
    assert caught.value.kind == "unreadable"


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(transforms, "_pixels", None)
    with pytest.raises(DataError, match="203 x 151 = 30,653 pixels") as caught:
        encoded(FILES["420"], max_pixels=30_652).crop(32, transforms.square, "bilinear")
    assert caught.value.kind == "bomb"


def test_a_header_that_says_another_size_to_each_library_is_left_to_pillow():
    assert transforms._simplejpeg(FILES["420"], (203, 152), 8) is None


@settings(deadline=None, max_examples=300)
@given(
    kind=st.sampled_from(sorted(OPTIONS)),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 10**6)),
    tail=st.binary(max_size=20),
)
def test_damaged_files_give_what_pillow_gives(kind, damage, cut, tail):
    content = bytearray(FILES[kind])
    for place, value in damage:
        content[place % len(content)] = value
    content = bytes(content[: len(content) if cut is None else cut % len(content)] + tail)
    found = outcome(content)
    with pillow_alone():
        expected = outcome(content)
    if isinstance(expected, tuple):
        assert found == expected
    else:
        np.testing.assert_array_equal(found, expected)
    with contextlib.suppress(DataError):  # any other error fails the test
        assert encoded(content).crop(16, transforms.square, "bilinear").shape == (16, 16, 3)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [0.3, 0.5, 0.8, 1.0, 1.3])
def test_a_crop_is_decoded_small_but_never_below_its_size(monkeypatch, resample, scale):
    zooms, show = [], transforms._show
    monkeypatch.setattr(transforms, "_show", lambda *given: (zooms.append(given[5:6]), show(*given))[1])
    whole = decode(FILES["444"])
    for size in (8, 16, 31, 75, 151, 200):
        where = lambda width, height: transforms.square(width, height, scale=scale, shift=(0.05, -0.03))  # noqa: E731
        found = encoded(FILES["444"]).crop(size, where, resample)
        [zoom], least = zooms[-1], min(1, size / (151 * scale))
        assert zoom >= least
        assert zoom == min(k / 8 for k in (1, 2, 3, 4, 5, 6, 8) if k / 8 >= least)
        expected = transforms.crop(whole, size, where, resample)
        assert np.abs(found.astype(int) - expected).mean() < 3  # the noise is filtered in two ways
        if zoom == 1:
            np.testing.assert_array_equal(found, expected)


def test_a_crop_depends_on_bytes_and_place_alone():
    place = lambda width, height: transforms.Window(3, 5, 140.5, 120, flip=True)  # noqa: E731
    crops = [encoded(content) for content in FILES.values()] * 20
    once = [each.crop(48, place, "bicubic") for each in crops[: len(FILES)]]
    with ThreadPoolExecutor(4) as threads:
        for found, expected in zip(threads.map(lambda each: each.crop(48, place, "bicubic"), crops), itertools.cycle(once), strict=False):
            np.testing.assert_array_equal(found, expected)
