"""Clips: films, animations, folders and sheets give the frames at places; what cannot be is an error with a kind."""

import os

import numpy as np
import pytest
from media_files import animation, film, frames, kind_of
from PIL import Image

from bacl_jax.config import DataConfig
from bacl_jax.config_media import VideoDataConfig
from bacl_jax.data import inputs, transforms, video
from bacl_jax.errors import DataError

PLACES = [0.05, 0.3, 0.55, 0.9]
LIMITS = {"max_frames": 1000, "max_pixels": 10**6}


def grey(found):
    return [round(float(picture.mean())) for picture in found]


def clip(path, **limits):
    return video.ClipFile(str(path), **{**LIMITS, **limits})


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_films(tmp_path, ending):
    found = clip(film(tmp_path / f"a.{ending}")).frames(PLACES)
    assert [picture.shape for picture in found] == [(32, 32, 3)] * 4
    np.testing.assert_allclose(grey(found), [int(place * 16) * 255 / 16 for place in PLACES], atol=17)


def test_a_film_without_times_is_decoded_whole(tmp_path):
    path = tmp_path / "a.m4v"  # raw MPEG-4: no container tells how long it is
    film(tmp_path / "a.avi")
    import av

    with av.open(str(tmp_path / "a.avi")) as container, path.open("wb") as raw:
        for packet in container.demux(video=0):
            raw.write(bytes(packet))
    found = clip(path).frames(PLACES)
    np.testing.assert_allclose(grey(found), [int(place * 16) * 255 / 16 for place in PLACES], atol=17)


@pytest.mark.parametrize("ending", ["webp", "gif", "png"])
def test_animations(tmp_path, ending):
    found = clip(animation(tmp_path / f"a.{ending}")).frames(PLACES)
    np.testing.assert_allclose(grey(found), [int(place * 8) * 255 / 8 for place in PLACES], atol=4)


def test_folders_and_sheets(tmp_path):
    pictures = frames(6)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    os.mkfifo(tmp_path / "pipe.png")  # which would be waited for
    expected = [int(place * 6) * 255 / 6 for place in PLACES]
    np.testing.assert_allclose(grey(clip(tmp_path).frames(PLACES)), expected, atol=1)
    sheet = np.concatenate([np.concatenate(pictures[:3], 1), np.concatenate(pictures[3:], 1)], 0)
    Image.fromarray(sheet).save(tmp_path / "sheet.png")
    found = video.Sheet(tmp_path / "sheet.png", 2, 3, 6, 10**6).frames(PLACES)
    np.testing.assert_allclose(grey(found), expected, atol=1)
    assert all(frame.base is None for frame in found)  # a view would keep the sheet in memory


def test_bad_clips_are_errors_with_a_kind(tmp_path):
    good = film(tmp_path / "good.mp4").read_bytes()
    (tmp_path / "none").mkdir()
    bad = {
        "empty.mp4": (b"", "unreadable"),
        "text.mp4": (b"no film" * 500, "unreadable"),
        "cut.mp4": (good[:200], "unreadable"),
        "text.webp": (b"no animation", "unreadable"),
        "cut.gif": (animation(tmp_path / "good.gif").read_bytes()[:20], "unreadable"),
    }
    for name, (content, kind) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as error:
            clip(tmp_path / name).frames(PLACES)
        assert error.value.kind == kind, name
    for path, limits, kind in (
        (tmp_path / "none", {}, "empty"),
        (tmp_path / "good.mp4", {"max_frames": 15}, "bomb"),
        (tmp_path / "good.mp4", {"max_pixels": 1000}, "bomb"),
        (tmp_path / "good.gif", {"max_frames": 7}, "bomb"),
    ):
        with pytest.raises(DataError) as error:
            clip(path, **limits).frames(PLACES)
        assert error.value.kind == kind, path


def test_truncated_films_are_errors_or_what_is_left(tmp_path):
    for ending in ("mkv", "avi", "gif"):
        whole = (animation if ending == "gif" else film)(tmp_path / f"whole.{ending}").read_bytes()
        for end in range(1, len(whole), len(whole) // 12):
            (tmp_path / f"cut.{ending}").write_bytes(whole[:end])
            kind = kind_of(lambda ending=ending: clip(tmp_path / f"cut.{ending}").frames(PLACES))
            assert kind in (None, "unreadable", "empty"), (ending, end)


def test_a_clip_of_one_pixel_and_one_frame():
    config = DataConfig(anchors=("video",), image_size=8, video=VideoDataConfig(frames=4))
    found = inputs.seen(video.Seen([np.full((1, 1, 3), 7, np.uint8)]), config, transforms.square, [0.5] * 4)
    assert found.values.shape == (4, 8, 8, 3)
    assert (found.values == 7).all()
    parts = inputs.seen(video.Seen(frames(8, 8)), config, transforms.square, [0.0] * 4)
    assert grey(parts.values) == grey(frames(8, 8)[::2])
