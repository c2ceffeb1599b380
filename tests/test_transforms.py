import contextlib
import dataclasses
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from bacl_jax.config import DataConfig
from bacl_jax.data import transforms
from bacl_jax.errors import DataError


def _encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _decode(content, max_pixels=10**6, max_side=64):
    return transforms.decode(content, max_pixels=max_pixels, max_side=max_side)


def _square(image, size, **where):
    return transforms.crop(image, size, lambda width, height: transforms.square(width, height, **where))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_becomes_white(mode):
    rgba = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    rgba.paste((10, 20, 30, 255), (0, 0, 2, 4))
    image = rgba.convert(mode)
    pixels = np.asarray(transforms.flatten_on_white(image))
    assert (pixels[:, 2:] == 255).all()
    assert (pixels[:, :2] < 100).all()


def test_half_transparency_is_mixed_with_white():
    image = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert abs(int(_decode(_encode(image))[0, 0, 0]) - 127) <= 1


def test_palette_with_transparent_index():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    pixels = _decode(_encode(image, transparency=1))
    np.testing.assert_array_equal(pixels, [[[255, 0, 0], [255, 255, 255]]])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert _decode(_encode(Image.new("RGB", (5, 3), "red").convert(mode), kind)).shape == (3, 5, 3)


def test_sixteen_bit_grey_is_scaled():
    image = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    np.testing.assert_array_equal(_decode(_encode(image))[0, :, 0], [0, 128, 255])


def test_float_images_are_refused():
    with pytest.raises(DataError, match="no fixed range") as caught:
        _decode(_encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))
    assert caught.value.kind == "unreadable"


def test_shorter_side_is_shrunk():
    assert _decode(_encode(Image.new("RGB", (300, 200), "red")), max_side=50).shape == (50, 75, 3)
    assert _decode(_encode(Image.new("RGB", (3000, 2000), "red"), "JPEG"), max_side=50, max_pixels=10**7).shape == (50, 75, 3)
    assert _decode(_encode(Image.new("RGB", (30, 20), "red")), max_side=50).shape == (20, 30, 3)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (8, 4), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    assert _decode(_encode(image, "JPEG", exif=exif)).shape == (8, 4, 3)


def test_bomb_is_refused_from_the_header():
    content = _encode(Image.new("RGB", (100, 100)))
    header_only = content[:60]  # nothing to decode is left, so a decoding attempt would say "unreadable"
    with pytest.raises(DataError, match=r"100 x 100 = 10,000 pixels.*9,999") as caught:
        _decode(header_only, max_pixels=9_999)
    assert caught.value.kind == "bomb"
    assert _decode(content, max_pixels=10_000).shape == (64, 64, 3)


def test_beyond_pillows_own_limit_is_a_bomb_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards
    content = bytearray(_encode(Image.new("1", (1, 1))))
    content[16:24] = (20_000).to_bytes(4, "big") * 2  # width and height of the PNG header
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"data.max_pixels is 399,999,999; shrink the image or raise") as caught:
        _decode(bytes(content), max_pixels=20_000**2 - 1)
    assert caught.value.kind == "bomb"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_max_pixels_can_be_raised_above_pillows_own_limit(kind, monkeypatch):
    for side in (120, 200):  # Pillow warns above its limit and refuses above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
        content = _encode(Image.new("RGB", (side, side)), kind)
        assert _decode(content, max_pixels=side**2).shape == (64, 64, 3)
        with pytest.raises(DataError) as caught:
            _decode(content, max_pixels=side**2 - 1)
        assert caught.value.kind == "bomb"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of odd metadata
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_damaged_images_are_unreadable_and_nothing_else(kind):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8))
    content = _encode(image, kind)
    random = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(content)
        for position in random.integers(0, len(content), random.integers(1, 5)):
            damaged[position] = random.integers(0, 256)
        if random.random() < 0.5:
            del damaged[random.integers(0, len(damaged)) :]
        with contextlib.suppress(DataError):  # any other error fails the test
            assert _decode(bytes(damaged)).shape[2] == 3


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"])
def test_what_is_no_image_is_unreadable(content):
    with pytest.raises(DataError, match="formats read: BMP") as caught:
        _decode(content)
    assert caught.value.kind == "unreadable"
    assert "0x" not in str(caught.value)  # an address in memory, so the lists of two audits would differ


def test_crop_without_arguments_is_the_centre_resized():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(transforms.crop(image, 32), expected)
    wide = np.concatenate([np.zeros((64, 20, 3), np.uint8), image, np.zeros((64, 20, 3), np.uint8)], axis=1)
    np.testing.assert_array_equal(transforms.crop(wide, 32)[:, 1:-1], expected[:, 1:-1])


def test_crop_shows_white_outside_and_moves_the_right_way():
    black = np.zeros((32, 32, 3), np.uint8)
    moved = _square(black, 32, shift=(0.25, 0.0))
    assert (moved[:, :24] == 0).all()
    assert (moved[:, 24:] == 255).all()
    np.testing.assert_array_equal(_square(black, 32, shift=(0.25, 0.0), flip=True), moved[:, ::-1])
    np.testing.assert_array_equal(_square(black, 32, shift=(0.0, -0.25)), moved.transpose(1, 0, 2)[::-1])
    smaller = _square(black, 32, scale=2.0)
    assert (smaller[8:24, 8:24] == 0).all()
    assert (smaller == 0).sum() == 16 * 16 * 3
    assert (_square(black, 32, shift=(1.0, 0.0)) == 255).all()


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 17),
    st.floats(0.1, 1.9),
    st.floats(-1, 1),
    st.floats(-1, 1),
    st.booleans(),
)
def test_crop_is_total(height, width, size, scale, x, y, flip):
    image = np.zeros((height, width, 3), np.uint8)
    result = _square(image, size, scale=scale, shift=(x, y), flip=flip)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8


def test_augmentation_is_a_pure_function_within_its_bounds():
    config = dataclasses.replace(DataConfig(), augment_scale=0.2, augment_shift=0.05, augment_flip=True)
    values = transforms.augmentation(3, 7, 1000, config)
    np.testing.assert_array_equal(values, transforms.augmentation(3, 7, 1000, config))
    assert (values != transforms.augmentation(3, 8, 1000, config)).any()
    assert (values != transforms.augmentation(4, 7, 1000, config)).any()
    assert 0.8 <= values[:, 0].min() < 0.81
    assert 1.19 < values[:, 0].max() <= 1.2
    assert np.abs(values[:, 1:3]).max() <= 0.05
    assert 0.4 < values[:, 3].mean() < 0.6
    off = dataclasses.replace(config, augment_scale=0.0, augment_shift=0.0, augment_flip=False)
    np.testing.assert_array_equal(transforms.augmentation(3, 7, 5, off), np.tile([1.0, 0, 0, 0], (5, 1)))


RESIZED = dataclasses.replace(DataConfig(), augment_crop="resized", augment_area=(0.3, 0.9), augment_ratio=(0.5, 3.0))


def _resized(width, height, count, config=RESIZED, seed=0):
    rows = transforms.augmentation(seed, 0, count, config).tolist()
    return np.array([dataclasses.astuple(transforms.place(row, config)(width, height))[:4] for row in rows])


def _reference(width, height, random, config):
    """torchvision's RandomResizedCrop, drawn one number after the other."""
    low, high = config.augment_ratio
    for _ in range(10):
        area, ratio = width * height * random.uniform(*config.augment_area), np.exp(random.uniform(np.log(low), np.log(high)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.integers(width - w + 1), random.integers(height - h + 1), w, h
    w, h = width, height
    if width / height < low:
        h = round(w / low)
    elif width / height > high:
        w = round(h * high)
    return (width - w) // 2, (height - h) // 2, w, h


@pytest.mark.parametrize(("width", "height"), [(100, 100), (160, 90), (60, 200)])
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.9, 1.0)])
def test_the_random_resized_crop_has_the_reference_distribution(width, height, area):
    config = dataclasses.replace(RESIZED, augment_area=area, augment_ratio=(0.75, 4 / 3))
    found = _resized(width, height, 8000, config)
    random = np.random.default_rng(1)
    expected = np.array([_reference(width, height, random, config) for _ in range(8000)])
    for column in range(4):  # whole numbers, so the p-values are on the safe side
        assert stats.ks_2samp(found[:, column], expected[:, column]).pvalue > 1e-3
    whole = [np.mean((part[:, 2] == width) & (part[:, 3] == height)) for part in (found, expected)]
    assert abs(whole[0] - whole[1]) < 0.03


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(10, 1000, (0, 490, 10, 20)), (1000, 10, (485, 0, 30, 10)), (1, 1, (0, 0, 1, 1))]
)
def test_a_picture_that_no_draw_fits_gives_its_largest_part(width, height, expected):
    config = dataclasses.replace(RESIZED, augment_area=(0.9, 1.0))
    assert (_resized(width, height, 20, config) == expected).all()


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 100))
def test_the_random_resized_crop_lies_in_the_picture(width, height, seed):
    left, top, w, h = _resized(width, height, 20, seed=seed).T
    assert (np.minimum(left, top) >= 0).all()
    assert (np.minimum(w, h) >= 1).all()
    assert (left + w <= width).all()
    assert (top + h <= height).all()


def test_resized_draws_depend_on_seed_step_and_row():
    values = transforms.augmentation(3, 7, 50, dataclasses.replace(RESIZED, augment_flip=True))
    np.testing.assert_array_equal(values, transforms.augmentation(3, 7, 50, dataclasses.replace(RESIZED, augment_flip=True)))
    assert (values != transforms.augmentation(3, 8, 50, RESIZED)).any()
    assert set(values[:, -1]) == {0, 1}
    assert not transforms.augmentation(3, 7, 50, RESIZED)[:, -1].any()


def test_a_part_of_another_ratio_is_stretched():
    image = np.zeros((40, 80, 3), np.uint8)
    image[10:30, 20:60] = 255
    found = transforms.crop(image, 16, lambda width, height: transforms.Window(20, 10, 40, 20))
    assert (found[2:-2, 2:-2] == 255).all()
    whole = transforms.crop(image, 16, lambda width, height: transforms.Window(0, 0, 80, 40))
    assert (whole[5:11, 5:11] > 250).all()
    assert (whole[:3] == 0).all()
