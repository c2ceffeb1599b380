"""Pixels: decoding, flattening, cropping. Everything is a Pillow call with a contract around it.

Dimension legend: B rows of the global batch, S pixels a side.
"""

import io
import struct
import threading
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from bacl_jax.config import DataConfig
from bacl_jax.data.order import AUGMENTATION, generator
from bacl_jax.data.source import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # not all that Pillow reads: its EPS reader, for one, starts another program
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error)
_WHITE = (255, 255, 255)
_pillow_limit = threading.Lock()


def decode(source: Path | bytes, *, max_pixels: int, max_side: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decode one image (the first frame), upright by its EXIF orientation, transparency flattened on white.

    max_pixels: a larger image is refused from its header, before a pixel is decoded. Pillow's own limit is raised to it where it is lower.
    max_side:   a picture whose shorter side is longer than this is shrunk to it (a JPEG already while it is decoded).
    Raises DataError of kind "bomb" or "unreadable"; the message does not name the file, the caller knows more about it.
    """
    _raise_pillows_limit(max_pixels)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(_bomb(f"{width} x {height} = {width * height:,} pixels", max_pixels), kind="bomb")
            shrink = min(width, height) / max_side
            if shrink > 1:
                image.draft("RGB", (round(width / shrink), round(height / shrink)))
            picture = flatten_on_white(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_bomb(str(error), max_pixels), kind="bomb") from error
    except DataError:
        raise
    except _UNREADABLE as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"not a readable image ({reason}); formats read: {', '.join(FORMATS)}", kind="unreadable") from error
    shrink = min(picture.size) / max_side
    if shrink > 1:
        width, height = picture.size
        size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        picture = picture.resize(size, Image.Resampling.BOX if shrink > 4 else Image.Resampling.LANCZOS)
    return np.asarray(picture)


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


def augmentation(seed: int, step: int, batch_size: int, config: DataConfig) -> Float[np.ndarray, "B 4"]:
    """(crop scale, shift x, shift y, flip) of each global row, a pure function of (seed, step, row).

    Scale in [1 - s, 1 + s] and shifts in [-t, t] of the picture's shorter side; flip is 0 or 1.
    """
    draw = generator(seed, step, AUGMENTATION).random((batch_size, 4))
    scale = 1 + config.augment_scale * (2 * draw[:, 0] - 1)
    shift = config.augment_shift * (2 * draw[:, 1:3] - 1)
    flip = (draw[:, 3:] < 0.5) & config.augment_flip
    return np.concatenate([scale[:, None], shift, flip], axis=1)


def crop(
    image: UInt8[np.ndarray, "h w 3"], size: int, *, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0), flip: bool = False
) -> UInt8[np.ndarray, "S S 3"]:
    """A square crop, resampled with anti-aliasing to [size, size].

    The square has side `scale` * min(h, w) and the centre of the picture, moved by `shift` (x, y) * min(h, w); without arguments it is
    the centre crop of evaluation. What lies outside the picture is white.
    """
    height, width = image.shape[:2]
    base = min(height, width)
    side = base * scale
    left = (width - side) / 2 + shift[0] * base
    top = (height - side) / 2 + shift[1] * base
    source_x, target_x = _overlap(left, side, width, size)
    source_y, target_y = _overlap(top, side, height, size)
    target = (target_x[1] - target_x[0], target_y[1] - target_y[0])
    if min(target) <= 0:
        return np.full((size, size, 3), _WHITE, np.uint8)
    box = (source_x[0], source_y[0], source_x[1], source_y[1])
    part = np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BILINEAR, box=box))
    if target != (size, size):
        canvas = np.full((size, size, 3), _WHITE, np.uint8)
        canvas[target_y[0] : target_y[1], target_x[0] : target_x[1]] = part
        part = canvas
    return part[:, ::-1] if flip else part


def _overlap(start: float, side: float, length: int, size: int) -> tuple[tuple[float, float], tuple[int, int]]:
    """Along one axis: the part of [start, start + side] inside [0, length], and the whole target pixels of [0, size] that show it."""
    pixel = side / size
    first = round((max(start, 0.0) - start) / pixel)
    last = round((min(start + side, float(length)) - start) / pixel)
    return (max(start + first * pixel, 0.0), min(start + last * pixel, float(length))), (first, last)
