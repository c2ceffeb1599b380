"""Clips: video files (FFmpeg's formats, by PyAV), animated WebP, GIF and PNG (Pillow), frames on a sheet, frames in a folder.

Places of frames are shares of a clip's length, in [0, 1), so that one draw serves clips of any length.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageSequence

from bacl_jax.data import ffmpeg, orientation, transforms
from bacl_jax.data.source import Clip
from bacl_jax.errors import DataError

ANIMATED = (".webp", ".gif", ".png", ".apng")  # what Pillow reads; PyAV all others
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # what a folder's frames may be
NEAR = 2.0  # seconds up to which a frame is reached by decoding on rather than by seeking
Frames = list[UInt8[np.ndarray, "h w 3"]]


@dataclasses.dataclass(frozen=True)
class Seen(Clip):
    """Decoded frames."""

    values: Sequence[UInt8[np.ndarray, "h w 3"]]

    def frames(self, places: Sequence[float]) -> Frames:
        return [self.values[int(place * len(self.values))] for place in places]


@dataclasses.dataclass(frozen=True, slots=True)
class ClipFile(Clip):
    """A clip in a file, or a folder with a picture for each frame, in the order of their names."""

    path: str
    max_frames: int
    max_pixels: int

    def frames(self, places: Sequence[float]) -> Frames:
        path = Path(self.path)
        read = of_folder if path.is_dir() else animation if path.suffix.lower() in ANIMATED else film
        try:
            return read(path, places, max_frames=self.max_frames, max_pixels=self.max_pixels)
        except DataError as error:
            raise DataError(f"{self.path}: {error}", kind=error.kind, shard=self.path) from error


def of_folder(folder: Path, places: Sequence[float], *, max_frames: int, max_pixels: int) -> Frames:
    """Frames of a folder of pictures. DataError of kind "unreadable", "empty" or "bomb"."""
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file())
    _check_count(len(pictures), max_frames)
    chosen = [pictures[int(place * len(pictures))] for place in places]
    decoded = {path: _picture(path, max_pixels) for path in {*chosen}}
    return [decoded[path] for path in chosen]


def _picture(path: Path, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    try:
        return transforms.decode(path, max_pixels=max_pixels, max_side=1 << 20)
    except DataError as error:
        raise DataError(f"{path.name}: {error}", kind=error.kind) from error


@dataclasses.dataclass(frozen=True)
class Sheet(Clip):
    """Frames side by side on one picture, row by row: the first `count` of rows x columns."""

    path: Path
    rows: int
    columns: int
    count: int
    max_pixels: int

    def frames(self, places: Sequence[float]) -> Frames:
        try:
            sheet = transforms.decode(self.path, max_pixels=self.max_pixels, max_side=1 << 20)
        except (DataError, OSError) as error:
            raise DataError(f"{self.path}: {error}", kind=getattr(error, "kind", "missing"), shard=str(self.path)) from error
        height, width = sheet.shape[0] // self.rows, sheet.shape[1] // self.columns
        if self.count > self.rows * self.columns or not height or not width:
            found = f"{sheet.shape[1]} x {sheet.shape[0]} pixels for {self.rows} rows, {self.columns} columns and {self.count} frames"
            raise DataError(f"{self.path}: {found}", kind="unreadable", shard=str(self.path))
        numbers = [int(place * self.count) for place in places]
        cells = {number: self._cell(sheet, number, height, width) for number in {*numbers}}
        return [cells[number] for number in numbers]

    def _cell(self, sheet: UInt8[np.ndarray, "H W 3"], number: int, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
        """One frame, copied: a view would keep the whole sheet in memory, and is cropped slower."""
        row, column = divmod(number, self.columns)
        return sheet[row * height : (row + 1) * height, column * width : (column + 1) * width].copy()


def _check_count(count: int, most: int) -> None:
    if count < 1:
        raise DataError("no frame in it", kind="empty")
    if count > most:
        raise DataError(f"refused: {count:,} frames, data.video.max_frames is {most:,}; cut the clip or raise it", kind="bomb")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(f"refused: frames of {width} x {height} pixels, data.max_pixels is {max_pixels:,}; shrink them", kind="bomb")


def animation(path: Path, places: Sequence[float], *, max_frames: int, max_pixels: int) -> Frames:
    """Frames of an animated WebP, GIF or PNG, transparent parts white. DataError of kind "unreadable", "empty" or "bomb"."""
    try:
        with Image.open(path, formats=("WEBP", "GIF", "PNG")) as image:
            _check_size(*image.size, max_pixels)
            count = int(getattr(image, "n_frames", 1))
            _check_count(count, max_frames)
            wanted = [int(place * count) for place in places]
            found: dict[int, np.ndarray] = {}
            for number, frame in enumerate(ImageSequence.Iterator(image)):
                if number in wanted:
                    found[number] = np.asarray(transforms.flatten_on_white(frame.copy()))
                if number >= max(wanted):
                    break
            return [found[number] for number in wanted]
    except DataError:  # which is a ValueError
        raise
    except orientation.DAMAGE as error:
        raise DataError(f"not a readable animation ({str(error) or type(error).__name__})", kind="unreadable") from error


def film(source: Path | bytes, places: Sequence[float], *, max_frames: int, max_pixels: int) -> Frames:
    """Frames of a video file. DataError of kind "unreadable", "no_track", "empty" or "bomb".

    Where the file tells its length, each frame is sought from the key frame before it; else all frames are decoded, up to max_frames.
    """
    with ffmpeg.opened(source, "video") as container:
        if not container.streams.video:
            raise DataError("no pictures in it", kind="no_track")
        stream = container.streams.video[0]
        _check_size(stream.codec_context.width, stream.codec_context.height, max_pixels)
        _check_count(stream.frames or 1, max_frames)
        seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        found = _sought(container, stream, [place * seconds for place in places], max_frames) if seconds > 0 else None
        return found or _of_all(container, places, max_frames)


def _sought(container: Any, stream: Any, times: Sequence[float], max_frames: int) -> Frames | None:
    """The last frame that begins at or before each of the ascending times, in seconds; None where the frames tell no times."""
    start, found = float((stream.start_time or 0) * stream.time_base), []
    decoded: Iterator[Any] = iter(())
    current, following, left = None, None, max_frames
    for time in times:
        if current is None or time + start - current.time > NEAR:
            container.seek(int((time + start) / stream.time_base), stream=stream)
            decoded, current, following = container.decode(stream), None, None
        while (following := following or next(decoded, None)) is not None:
            if following.time is None or left == 0:
                return None
            if current is not None and following.time > time + start + 1e-6:
                break
            current, following, left = following, None, left - 1
        if current is None:
            return None
        found.append(current.to_ndarray(format="rgb24"))
    return found


def _of_all(container: Any, places: Sequence[float], max_frames: int) -> Frames:
    """Decodes all frames twice: to count them, and to keep those that are wanted."""
    container.seek(0)
    count = 0
    for _ in container.decode(video=0):
        count += 1
        _check_count(count, max_frames)
    _check_count(count, max_frames)
    container.seek(0)
    wanted = [int(place * count) for place in places]
    kept = {i: frame.to_ndarray(format="rgb24") for i, frame in enumerate(container.decode(video=0)) if i in wanted}
    return [kept[i] for i in wanted]
