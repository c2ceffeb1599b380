"""Pixels: decoding, flattening, cropping. simplejpeg decodes JPEG files, Pillow all others and what simplejpeg refuses.

Dimension legend: B rows of the global batch, D numbers drawn for a row, S pixels a side.
"""

import contextlib
import dataclasses
import io
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from bacl_jax.config import DataConfig
from bacl_jax.data import orientation
from bacl_jax.data.order import AUGMENTATION, generator
from bacl_jax.data.source import Picture
from bacl_jax.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # not all that Pillow reads: its EPS reader, for one, starts another program
Filter = Literal["bilinear", "bicubic"]
_WHITE = (255, 255, 255)
_EIGHTHS = (1, 2, 3, 4, 5, 6, 8)  # of a JPEG's size at which it can be decoded; 7/8 takes longer than the whole
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}  # both with anti-aliasing
_TRIES = 10  # areas and ratios drawn for a random resized crop before the whole picture is taken, as in torchvision
_pillow_limit = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a picture: its upper left corner and its size in pixels, which may reach beyond the picture; mirrored or not."""

    left: float
    top: float
    width: float
    height: float
    flip: bool = False


Place = Callable[[int, int], Window]  # (width, height) of a picture -> the part of it that is shown


@dataclasses.dataclass(frozen=True)
class Encoded(Picture):
    """A picture as it is stored, decoded when it is looked at; a JPEG no larger than what is looked at needs.

    name, shard: lead the message of a DataError, and go into it.
    max_pixels, max_side: as `decode` takes them.
    """

    content: bytes
    name: str
    shard: str
    max_pixels: int
    max_side: int

    def whole(self) -> UInt8[np.ndarray, "h w 3"]:
        with self._named():
            return decode(self.content, max_pixels=self.max_pixels, max_side=self.max_side)

    def crop(self, size: int, where: Place, resample: Filter) -> UInt8[np.ndarray, "S S 3"]:
        """As the function `crop`. A JPEG is decoded at the least size at which the part still has `size` pixels a side."""
        with self._named(), _opened(self.content, self.max_pixels) as image:
            if not isinstance(image, JpegImageFile):
                picture = orientation.upright(_pixels(image, self.content, 1.0)[0], orientation.read(image))
                return _show(picture, picture.size, where(*picture.size), size, resample)
            turn = orientation.read(image)
            upright = orientation.upright_size(image.size, turn)
            window = where(*upright)
            stored, zoom = _pixels(image, self.content, min(window.width, window.height) / size)
            picture = orientation.upright(stored, turn)
            return _show(picture, upright, window, size, resample, zoom, orientation.corner(picture, upright, zoom, turn))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.name}: {error}", kind=error.kind, shard=self.shard) from error


def decode(source: Path | bytes, *, max_pixels: int, max_side: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decode one image (the first frame), upright by its EXIF orientation, transparency flattened on white.

    max_pixels: a larger image is refused from its header, before a pixel is decoded. Pillow's own limit is raised to it where it is lower.
    max_side:   a picture whose shorter side is longer than this is shrunk to it (a JPEG already while it is decoded).
    Raises DataError of kind "bomb" or "unreadable"; the message does not name the file, the caller knows more about it.
    """
    with _opened(source, max_pixels) as image:
        picture = orientation.upright(_pixels(image, source, min(image.size) / max_side)[0], orientation.read(image))
    shrink = min(picture.size) / max_side
    if shrink > 1:
        width, height = picture.size
        size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        picture = picture.resize(size, Image.Resampling.BOX if shrink > 4 else Image.Resampling.LANCZOS)
    return np.asarray(picture)


@contextlib.contextmanager
def _opened(source: Path | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The image with its header read; what goes wrong with it, in the block too, becomes a DataError."""
    _raise_pillows_limit(max_pixels)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(_bomb(f"{width} x {height} = {width * height:,} pixels", max_pixels), kind="bomb")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_bomb(str(error), max_pixels), kind="bomb") from error
    except DataError:
        raise
    except orientation.DAMAGE as error:
        unidentified = isinstance(error, UnidentifiedImageError)  # whose message holds an address in memory, another in each run
        reason = "no such format is recognised in it" if unidentified else str(error) or type(error).__name__
        raise DataError(f"not a readable image ({reason}); formats read: {', '.join(FORMATS)}", kind="unreadable") from error


def _pixels(image: Image.Image, source: Path | bytes, shrink: float) -> tuple[Image.Image, float]:
    """(the picture as it is stored, in RGB, its size relative to the stored one); a JPEG may be smaller, down to 1 / shrink.

    simplejpeg decodes without Python's lock and without Pillow's copies, to the same pixels (both are libjpeg-turbo). What it refuses, be
    it damaged or CMYK, Pillow decodes or refuses, at a half, a quarter or an eighth.
    """
    if not isinstance(image, JpegImageFile):
        return flatten_on_white(image), 1.0
    stored = image.size
    eighths = next((k for k in _EIGHTHS if k * shrink >= 8), 8)
    pixels = _simplejpeg(source.read_bytes() if isinstance(source, Path) else source, stored, eighths)
    if pixels is not None:
        return Image.fromarray(pixels), eighths / 8
    part = next((k for k in (8, 4, 2) if k <= shrink), 1)
    drafted = image.draft("RGB", (max(1, stored[0] // part), max(1, stored[1] // part)))
    return flatten_on_white(image), drafted[1][2] / stored[0] if drafted else 1.0


def _simplejpeg(content: bytes, size: tuple[int, int], eighths: int) -> UInt8[np.ndarray, "h w 3"] | None:
    """The picture at so many eighths of its size, None where simplejpeg finds a fault in the file or does not read its kind."""
    width, height = (-(-side * eighths // 8) for side in size)
    try:
        found_height, found_width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if (found_width, found_height) != size or colours not in ("YCbCr", "Gray", "RGB"):
            return None
        pixels = simplejpeg.decode_jpeg(content, "RGB", min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _raise_pillows_limit(max_pixels: int) -> None:
    """Let Pillow, whose own limit holds for the whole process, open what `max_pixels` allows without a warning or a refusal.

    The limit is raised, not removed: Pillow's GIF and WebP readers set memory aside while a file is opened, before its size is known here.
    """
    with _pillow_limit:
        if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = max_pixels


def _bomb(found: str, max_pixels: int) -> str:
    return f"refused as a decompression bomb: {found}, data.max_pixels is {max_pixels:,}; shrink the image or raise data.max_pixels"


def flatten_on_white(image: Image.Image) -> Image.Image:
    """The image in RGB, transparent parts white. 16-bit grey is scaled to 8 bits; modes without a fixed range (I, F) raise ValueError."""
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no fixed range of values; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, _WHITE)
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas


def augmentation(seed: int, step: int, batch_size: int, config: DataConfig) -> Float[np.ndarray, "B D"]:
    """The numbers that place each global row's crop, a pure function of (seed, step, row); `place` reads them.

    data.augment_crop "square": (scale, shift x, shift y, flip), scale in [1 - s, 1 + s], shifts in [-t, t] of the picture's shorter side.
    "resized": _TRIES areas, as many logarithms of ratios, both in their ranges, the corner x, y in [0, 1), flip. Flip is 0 or 1.
    """
    random = generator(seed, step, AUGMENTATION)
    if config.augment_crop == "square":
        draw = random.random((batch_size, 4))
        scale = 1 + config.augment_scale * (2 * draw[:, 0] - 1)
        shift = config.augment_shift * (2 * draw[:, 1:3] - 1)
        parts = [scale[:, None], shift]
    else:
        draw = random.random((batch_size, 2 * _TRIES + 3))
        ranges = (config.augment_area, np.log(config.augment_ratio))
        parts = [low + (high - low) * draw[:, i * _TRIES : (i + 1) * _TRIES] for i, (low, high) in enumerate(ranges)]
        parts.append(draw[:, -3:-1])
    flip = (draw[:, -1:] < 0.5) & config.augment_flip
    return np.concatenate([*parts, flip], axis=1)


def place(row: list[float], config: DataConfig, *, may_flip: bool = True) -> Place:
    """Where the crop of a row of `augmentation` lies in a picture of any size. may_flip: False: not mirrored, whatever was drawn."""
    flip = row[-1] > 0 and may_flip
    if config.augment_crop == "square":
        return lambda width, height: square(width, height, scale=row[0], shift=(row[1], row[2]), flip=flip)
    areas, ratios = row[:_TRIES], row[_TRIES : 2 * _TRIES]
    return lambda width, height: resized(width, height, areas, ratios, config.augment_ratio, (row[-3], row[-2]), flip=flip)


def square(width: int, height: int, *, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0), flip: bool = False) -> Window:
    """A square of side `scale` * min(h, w) in the centre of the picture, moved by `shift` (x, y) * min(h, w)."""
    base = min(height, width)
    side = base * scale
    return Window((width - side) / 2 + shift[0] * base, (height - side) / 2 + shift[1] * base, side, side, flip)


def resized(
    width: int,
    height: int,
    areas: list[float],
    log_ratios: list[float],
    bounds: tuple[float, ...],
    corner: tuple[float, float],
    *,
    flip: bool = False,
) -> Window:
    """The part that Inception's crop takes (arXiv 1409.4842), with torchvision's rules: the first area and ratio whose part fits in.

    Where none does, the largest part in the centre whose width / height lies within `bounds`. Whole pixels; the picture is never left.
    """
    for area, ratio in zip(areas, map(math.exp, log_ratios), strict=True):
        w, h = round(math.sqrt(width * height * area * ratio)), round(math.sqrt(width * height * area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Window(int(corner[0] * (width - w + 1)), int(corner[1] * (height - h + 1)), w, h, flip)
    w, h = min(width, max(1, round(height * max(bounds)))), min(height, max(1, round(width / min(bounds))))
    return Window((width - w) // 2, (height - h) // 2, w, h, flip)


def crop(
    picture: Picture | UInt8[np.ndarray, "h w 3"], size: int, where: Place = square, resample: Filter = "bilinear"
) -> UInt8[np.ndarray, "S S 3"]:
    """The part of a picture that `where` names, resampled with anti-aliasing to [size, size]; by default the centre crop of evaluation.

    What lies outside the picture is white. Raises DataError where the picture is stored and cannot be decoded.
    """
    if isinstance(picture, Picture):
        return picture.crop(size, where, resample)
    height, width = picture.shape[:2]
    return _show(Image.fromarray(picture), (width, height), where(width, height), size, resample)


def _show(
    picture: Image.Image,
    stored: tuple[int, int],
    window: Window,
    size: int,
    resample: Filter,
    zoom: float = 1.0,
    corner: tuple[float, float] = (0.0, 0.0),
) -> UInt8[np.ndarray, "S S 3"]:
    """The window, in pixels of the stored size (width, height), of which `picture` has `zoom` times as many a side.

    corner: where the upper left corner of that size lies in `picture`.
    """
    source_x, target_x = _overlap(window.left, window.width, stored[0], size)
    source_y, target_y = _overlap(window.top, window.height, stored[1], size)
    target = (target_x[1] - target_x[0], target_y[1] - target_y[0])
    if min(target) <= 0:
        return np.full((size, size, 3), _WHITE, np.uint8)
    left, top = corner
    box = (left + zoom * source_x[0], top + zoom * source_y[0], left + zoom * source_x[1], top + zoom * source_y[1])
    part = np.asarray(picture.resize(target, _FILTERS[resample], box=box))
    if target != (size, size):
        canvas = np.full((size, size, 3), _WHITE, np.uint8)
        canvas[target_y[0] : target_y[1], target_x[0] : target_x[1]] = part
        part = canvas
    return part[:, ::-1] if window.flip else part


def _overlap(start: float, side: float, length: int, size: int) -> tuple[tuple[float, float], tuple[int, int]]:
    """Along one axis: the part of [start, start + side] inside [0, length], and the whole target pixels of [0, size] that show it."""
    pixel = side / size
    first = round((max(start, 0.0) - start) / pixel)
    last = round((min(start + side, float(length)) - start) / pixel)
    return (max(start + first * pixel, 0.0), min(start + last * pixel, float(length))), (first, last)
