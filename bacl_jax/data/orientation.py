"""Which way up a stored picture is, by its EXIF data."""

import struct

from PIL import ExifTags, Image

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
)  # of Pillow
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THE_SIDE = (5, 6, 7, 8)  # width and height change places
_END_AT_LEFT, _END_AT_TOP = (2, 3, 6, 7), (3, 4, 7, 8)  # the end of the stored rows or columns comes to lie there


def read(image: Image.Image) -> int:
    """1 to 8; 1, upright, also where the EXIF data are damaged: the picture may be sound. Of a TIFF, which Pillow turns when it reads the
    pixels, what is left to do afterwards."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1
    return found if found in _TURNS else 1


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def upright_size(stored: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) of the upright picture."""
    return (stored[1], stored[0]) if orientation in _ON_THE_SIDE else stored


def corner(picture: Image.Image, size: tuple[int, int], zoom: float, orientation: int) -> tuple[float, float]:
    """Where the upper left corner of an upright picture of `size` lies in `picture`, which is stored at `zoom` and turned upright.

    The last stored row and column may show less than a whole pixel, and turning may bring them to the left and the top.
    """
    left = picture.width - zoom * size[0] if orientation in _END_AT_LEFT else 0.0
    top = picture.height - zoom * size[1] if orientation in _END_AT_TOP else 0.0
    return left, top
