"""Tar shards of JPEG pictures as those of a web data set: `python -m benchmarks.photos FOLDER` in the peers' environment.

Each picture is a random part of a photograph that the package scikit-image brings along, mirrored or not, in other colours, blended with
a second part, of 400 to 600 pixels a side, JPEG of quality 90 with 4:2:0 colours. They lie there in two forms: FOLDER/few holds all of
them in 10 shards, FOLDER/many each of them twice, with two captions, in 10,000 shards of one row.
"""

import functools
import io
import multiprocessing
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES, FEW, MANY = 5000, 10, 10_000
SIDE = (400, 600)  # pixels
QUALITY = 90
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
WORDS = ("a", "photo", "of", "the", "red", "small", "house", "near", "an", "old", "river", "with", "two", "people", "at", "night")


@functools.cache
def photographs() -> list[Image.Image]:
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]


def part(random: np.random.Generator, sources: list[Image.Image], size: tuple[int, int]) -> np.ndarray:
    """A random part of a random photograph, 30 to 100 % of its sides, scaled to `size`."""
    source = sources[random.integers(len(sources))]
    width, height = (side * random.uniform(0.3, 1) for side in source.size)
    left, top = random.uniform(0, source.width - width), random.uniform(0, source.height - height)
    image = source.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    pixels = np.asarray(image, np.float32)
    return pixels[:, ::-1] if random.random() < 0.5 else pixels


def picture(number: int) -> bytes:
    """The JPEG file of this number, always the same."""
    sources, random = photographs(), np.random.default_rng(number)
    size = (int(random.integers(*SIDE, endpoint=True)), int(random.integers(*SIDE, endpoint=True)))
    share = random.uniform(0, 0.3)
    pixels = (1 - share) * part(random, sources, size) + share * part(random, sources, size)
    light, shade, noise = random.uniform(0.8, 1.2, 3), random.uniform(-15, 15, 3), random.normal(0, 2, pixels.shape)
    pixels = pixels * light + shade + noise
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def caption(number: int) -> bytes:
    random = np.random.default_rng(number + 1)
    return " ".join(random.choice(WORDS, int(random.integers(5, 20)))).encode()


def write(shards: list[Path], rows: int, pictures: list[bytes]) -> None:
    """Rows 0 ... rows - 1, in equal parts; a row past the last picture begins with the first again, under a caption of its own."""
    for place, shard in enumerate(shards):
        with tarfile.open(shard, "w") as tar:
            for row in range(rows * place // len(shards), rows * (place + 1) // len(shards)):
                for ending, content in (("jpg", pictures[row % len(pictures)]), ("txt", caption(row))):
                    member = tarfile.TarInfo(f"{row:08d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def main(folder: Path, count: int = PICTURES) -> None:
    with multiprocessing.Pool() as workers:
        pictures = workers.map(picture, range(count), chunksize=50)
    for name, shards, rows in (("few", FEW, count), ("many", MANY, 2 * count)):
        (folder / name).mkdir(parents=True)
        write([folder / name / f"{shard:05d}.tar" for shard in range(shards)], rows, pictures)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
