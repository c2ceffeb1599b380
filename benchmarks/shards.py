"""Tar shards of JPEG files to batches, a case a process: `python -m benchmarks.shards CASE` (see benchmarks/measure.py).

`ours` is bacl_jax's pipeline. `grain` is one that a user of grain writes without us: the same tar files by the offsets of their members,
Pillow, processes or threads. Both take open_clip's crop (random resized crop, 0.9 to 1 of the area, bicubic) and one tokenizer.
"""

import functools
import io
import json
import math
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from PIL import Image

from bacl_jax import data
from bacl_jax.config import Config, from_config_dict
from bacl_jax.data import tar_index
from benchmarks.measure import drain, serve

WORKERS = os.cpu_count() or 1
AHEAD = 2 * WORKERS  # batches, as torch's DataLoader reads ahead
TEXT = {"tokenizer": "bpe", "vocab_size": 4096, "context_length": 77}


def config_of(folder: str, batch: int, size: int) -> Config:
    augment = {"resample": "bicubic", "augment_crop": "resized", "augment_area": (0.9, 1.0)}
    reading = {"kind": "webdataset", "path": folder, "image_size": size, "threads": WORKERS, "prefetch": AHEAD}
    return from_config_dict({"data": reading | TEXT | augment, "train": {"batch_size": batch}})


def ours(shards: str, form: str, batch: int, size: int, batches: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """The input pipeline in globally shuffled order, a thread a core."""
    config = config_of(f"{shards}/{form}", batch, size)
    if not Path(shards, form, tar_index.NAME).exists():
        tar_index.build(f"{shards}/{form}", workers=WORKERS)
    dataset = data.load(config.data)
    source = data.batches(dataset, data.Tokenizer.train(dataset.training_captions(), config.data), config, start_step=0)
    return lambda: drain(source, batches), {"pairs": batch * batches, "workers": WORKERS}


class Members:
    """(picture, caption) of each pair in tar shards, read where `tarfile` found them."""

    def __init__(self, folder: Path):
        self.places: list[tuple[tuple[Path, int, int], ...]] = []
        for shard in sorted(folder.glob("*.tar")):
            with tarfile.open(shard) as tar:
                found = [(shard, member.offset_data, member.size) for member in tar]
            self.places.extend(zip(found[::2], found[1::2], strict=True))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[bytes, ...]:
        return tuple(map(_part, self.places[index]))


def _part(place: tuple[Path, int, int]) -> bytes:
    path, start, size = place
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)


def random_resized_crop(image: Image.Image, size: int, random: np.random.Generator) -> np.ndarray:
    """torchvision's, with Pillow alone."""
    box = (0, 0, *image.size)
    for _ in range(10):
        area, ratio = image.width * image.height * random.uniform(0.9, 1), math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if width <= image.width and height <= image.height:
            left, top = random.integers(image.width - width + 1), random.integers(image.height - height + 1)
            box = (left, top, left + width, top + height)
            break
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def grain_pil(shards: str, form: str, batch: int, size: int, batches: int, workers: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """grain's pipeline, globally shuffled; `workers` processes, 0: a thread a core."""
    config, members = config_of("", batch, size), Members(Path(shards, form))
    tokenizer = data.Tokenizer.train([members[i][1].decode() for i in range(len(members))], config.data)

    def pair(member: tuple[bytes, bytes], random: np.random.Generator) -> dict[str, np.ndarray]:
        with Image.open(io.BytesIO(member[0])) as image:
            pixels = random_resized_crop(image.convert("RGB"), size, random)
        ids, mask = tokenizer.encode([member[1].decode()])
        return {"image": pixels, "ids": ids[0], "mask": mask[0]}

    rows = grain.MapDataset.source(members).shuffle(seed=0).repeat().seed(0).random_map(pair).batch(batch)
    stream = rows.to_iter_dataset(grain.ReadOptions(num_threads=1 if workers else WORKERS, prefetch_buffer_size=1 if workers else AHEAD))
    if workers:
        flags.FLAGS.mark_as_parsed()  # grain asks for its own
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD // workers))
    source = iter(stream)
    return lambda: drain(source, batches), {"pairs": batch * batches, "workers": workers or WORKERS}


CASES = {"ours": ours, "grain": grain_pil}

if __name__ == "__main__":
    serve(functools.partial(CASES[sys.argv[1]], **json.loads(sys.argv[2])))
