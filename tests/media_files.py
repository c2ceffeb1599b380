"""Small sound and video files, whole and damaged."""

import json
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from bacl_jax.errors import DataError


def kind_of(read) -> str | None:
    """The kind of the DataError that a call raises; None where it raises none."""
    try:
        read()
    except DataError as error:
        return error.kind
    return None


def tone(rate: int = 16_000, seconds: float = 1.0, pitch: float = 440.0, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, 1).astype(np.float32)


def sound(path: Path, rate: int = 16_000, seconds: float = 1.0, pitch: float = 440.0, channels: int = 1) -> Path:
    soundfile.write(path, tone(rate, seconds, pitch, channels), rate)
    return path


def frames(count: int = 8, side: int = 16) -> list[np.ndarray]:
    """Grey pictures, each brighter than the one before."""
    return [np.full((side, side, 3), round(255 * number / max(count, 1)), np.uint8) for number in range(count)]


def film(path: Path, count: int = 16, side: int = 32, rate: int = 8, voice: bool = False) -> Path:
    """A video file; voice: with a sound track as long."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        track = container.add_stream("aac", rate=16_000, layout="mono") if voice else None
        for picture in frames(count, side):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        if track is not None:
            for start in range(0, round(16_000 * count / rate), 1024):
                heard = av.AudioFrame.from_ndarray(tone(16_000, 1024 / 16_000).T.copy(), format="fltp", layout="mono")
                heard.sample_rate, heard.pts = 16_000, start
                container.mux(track.encode(heard))
            container.mux(track.encode())
    return path


def animation(path: Path, count: int = 8, side: int = 16) -> Path:
    first, *rest = (Image.fromarray(picture) for picture in frames(count, side))
    options = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=rest, duration=50, **options)
    return path


def stamps(folder: Path, count: int = 24, languages: tuple[str, ...] = ("fr", "es")) -> Path:
    """Stamps in two classes, as Tux Paint has them: text, picture, spoken captions; every third has a sound effect."""
    for number in range(count):
        inside = folder / ("animals" if number % 2 else "food")
        inside.mkdir(parents=True, exist_ok=True)
        stem = inside / f"thing{number}"
        told = "".join(f"{language}.utf8=Chose {language} {number}.\n" for language in languages)
        stem.with_suffix(".txt").write_text(f"A thing number {number}.\n{told}")
        Image.new("RGB", (24, 24), (9 * number, 99, 0)).save(stem.with_suffix(".png"))
        for language in languages:
            sound(inside / f"thing{number}_desc_{language}.ogg", seconds=0.3, pitch=200 + 40 * number)
        if number % 3 == 0:
            sound(stem.with_suffix(".ogg"), seconds=0.3)
    return folder


def sprites(folder: Path, count: int = 6) -> Path:
    """Workers with sheets of six frames, as Widelands has them."""
    for number in range(count):
        inside = folder / "tribes" / "workers" / "romans" / f"worker{number}"
        inside.mkdir(parents=True)
        table = "frames = 6, rows = 2, columns = 3, hotspot = { 5, 21 }"
        (inside / "init.lua").write_text(
            f'wl.Descriptions():new_worker_type {{\n   name = "romans_worker{number}", -- a comment {{\n   spritesheets = {{\n'
            f"      idle = {{ fps = 10, {table} }},\n      walk = {{ directional = true, {table} }},\n      few = {{ frames = 2, rows = 1, "
            "columns = 2 },\n   }\n}\n"
        )
        for name in ("idle", *(f"walk_{way}" for way in ("e", "w", "ne", "nw", "se", "sw"))):
            Image.new("RGB", (30, 20), (40 * number, len(name), 50)).save(inside / f"{name}_1.png")
    return folder


def wavtext(folder):
    """As WavText5K's repository publishes it."""
    lines = ["id,title,description,tags,fname,download_link"]
    for number in range(12):
        sound(folder / f"{number}.wav", rate=22_050, seconds=0.2 + 0.1 * number, pitch=100 + 60 * number)
        lines.append(f'{number},tone,"A tone, number {number}.",x,{number}.wav,http://x')
    (folder / "WavText5K.csv").write_text("\n".join([*lines, '99,gone,"A link that is gone.",x,99.wav,http://x', ""]))
    return folder / "WavText5K.csv"


def webvid(folder):
    """As WebVid is published."""
    (folder / "000001_000050").mkdir()
    lines = ["videoid,contentUrl,duration,page_dir,name"]
    for number in range(12):
        film(folder / "000001_000050" / f"{number}.mp4", count=4 + number)
        lines.append(f"{number},http://x,PT00H00M01S,000001_000050,Grey clip number {number}")
    (folder / "results.csv").write_text("\n".join(lines))
    return folder / "results.csv"


def vast(folder, count=12):
    """As VAST-27M's annotations; every third clip has no sound track."""
    entries = []
    for number in range(count):
        film(folder / f"clip{number}.mp4", voice=number % 3 > 0)
        entries.append(
            {"clip_id": f"clip{number}", "vast_cap": f"Clip number {number} beeps.", "vision_cap": ["a", "b"], "label": number % 2}
        )
    (folder / "annotations.json").write_text(json.dumps(entries))
    return folder / "annotations.json"


def spoken(folder, count=16):
    """As launch.speak writes it."""
    for name in ("image", "audio"):
        (folder / name).mkdir()
    lines = ["image,audio,caption,split,speech"]
    for number in range(count):
        Image.new("RGB", (24, 24), (9 * number, 99, 0)).save(folder / "image" / f"{number}.png")
        sound(folder / "audio" / f"{number}.ogg", seconds=0.3, pitch=200 + 40 * number)
        split = "train" if number < count - 4 else ("validation", "test")[number % 2]
        lines.append(f"image/{number}.png,audio/{number}.ogg,thing number {number},{split},synthetic")
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder / "pairs.csv"
