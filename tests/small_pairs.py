"""A manifest of 24 coloured bars and a model so small that a run of it takes seconds, for tests that start launch.train or launch.sweep."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 200), "black": (0, 0, 0)}
SETTINGS = (
    "--config=configs/manifest.py",
    "--config.data.split_column=split",
    "--config.data.image_size=8",
    "--config.data.tokenizer=word",
    "--config.model.embed_dim=8",
    "--config.model.image.width=8",
    "--config.model.image.depth=1",
    "--config.model.text.width=8",
    "--config.model.text.depth=1",
    "--config.model.text.heads=2",
    "--config.objective.bns.enabled=False",
    "--config.objective.cla.enabled=False",
    "--config.objective.bank_size=8",
    "--config.optim.warmup_steps=1",
    "--config.train.batch_size=4",
    "--config.train.steps=4",
    "--config.train.eval_every=2",
    "--config.train.log_every=1",
    "--config.eval.batch_size=8",
    "--config.eval.tasks=('retrieval',)",
    "--config.eval.plots=False",
)


def write(folder):
    """Path of the manifest: two thirds of the rows are for training, the others for validation and test."""
    folder.mkdir()
    lines = ["image,caption,split"]
    for name, colour in COLOURS.items():
        for place in range(6):
            pixels = np.full((8, 8, 3), 255, np.uint8)
            pixels[place : place + 2, 2:6] = colour
            Image.fromarray(pixels).save(folder / f"{name}{place}.png")
            lines.append(f"{name}{place}.png,{name} bar {place},{ {4: 'validation', 5: 'test'}.get(place, 'train') }")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def squares(folder: Path, split: Callable[[int], str], *, side: int = 8) -> Path:
    """24 squares of one colour each in `folder` with captions, and the manifest of them. split: of the row of a number."""
    rows = ["image,caption,split"]
    for number in range(24):
        Image.new("RGB", (side, side), (10 * number, 0, 99)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,square {number % 5} of {number % 7},{split(number)}")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    return folder / "pairs.csv"
