"""What the spectral warm start brings where two frozen trunks meet that were never trained together: R@1 before training, and steps saved.

    MEET=(--config=configs/emoji_minilm.py --config.objective.bns.enabled=False --config.objective.cla.enabled=False
        --config.model.image.kind=clip --config.model.image.width=128 --config.model.image.depth=3 --config.model.image.patch=8
        --config.model.image.activation=gelu --config.model.image.pixels=clip --config.model.image.pretrained=exported
        --config.data.resample=bicubic --config.data.augment_scale=0 --config.data.augment_shift=0
        "--config.optim.frozen=('towers/(image|text)/(?!head/).*',)")
    python -m launch.train --config=configs/emoji_vit_bacl.py --workdir=runs/alone --config.model.image.patch=8 \\
        --config.model.image.depth=3 --config.model.text.depth=1 --config.objective.bns.enabled=False \\
        --config.objective.cla.enabled=False --config.train.steps=500
    python -m launch.export --workdir=runs/alone --format=hf --out=exported
    python -m launch.precompute "${MEET[@]}" --workdir=runs/meeting_features
    python -m benchmarks.spectral "${MEET[@]}" --config.data.features=runs/meeting_features --config.train.steps=300 --every=10

Arms: `random`, both heads fresh; `published`, what a run without the warm start begins with: the
image head comes with its tower, the text head is fresh; `svd`, the warm start without power steps; `power`, with those of the config. All
are trained on the same batches by the same optimiser. The trunks see each picture and caption of --split once.

--seeds  so many, from config.seed on: fresh heads, order of the rows.   --every  steps between two evaluations.
--split  validation or test.   --out  JSON file of all numbers; none if left out.

R@1 in percent, image to text and back, with its standard deviation over the seeds. Steps: the first evaluated one at which an arm
without the warm start is as good (image to text) as `power` was at another.
"""

import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from bacl_jax.config import Config, from_config_dict
from bacl_jax.data.loader import eval_batches
from bacl_jax.data.order import PartnerLists
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.retrieval import chance, own_pairs, ranked
from bacl_jax.mesh import to_global
from bacl_jax.paths import named
from bacl_jax.train.checkpoint import Checkpoints
from bacl_jax.train.state import TrainState
from bacl_jax.types import Trunk
from launch.beginning import read_data
from launch.session import Run, open_run

CONFIG = config_flags.DEFINE_config_file("config", help_string="Python file with get_config().")
ARMS = flags.DEFINE_list("arms", ["random", "published", "svd", "power"], "What the heads begin as.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of each arm.", lower_bound=1)
EVERY = flags.DEFINE_integer("every", 20, "Steps between two evaluations.", lower_bound=1)
SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "What is evaluated.")
OUT = flags.DEFINE_string("out", None, "JSON file of all numbers.")
WAYS = ("i2t_R@1", "t2i_R@1")
Curve = dict[int, dict[str, float]]  # step -> metric -> percent


class Evaluation:
    """R@1 of heads on the images and captions of a split, whose trunk features are computed once."""

    def __init__(self, run: Run, params: Any, split: str):
        embeddings = Embeddings(run.trainer, params, run.dataset, run.tokenizer, run.config, split)
        images, captions, self._of_image, self._of_caption = own_pairs(embeddings)
        self._model, self._chunk = run.trainer.model, run.config.eval.chunk
        source, size = run.dataset.splits[split].source, run.config.eval.batch_size
        image_trunk, text_trunk = (
            jax.jit(lambda *rows, f=f: f(params, *rows).pooled) for f in (self._model.image_trunk, self._model.text_trunk)
        )
        pictures = [np.asarray(image_trunk(rows))[:count] for rows, count in eval_batches(source, run.config.data, size)]
        ids, self._mask = run.tokenizer.encode([run.dataset.captions[i] for i in captions])
        self._images, self._captions = np.concatenate(pictures)[images], np.asarray(text_trunk(ids, self._mask))
        guesses = chance(self._of_image, len(captions), "i2t") | chance(self._of_caption, len(images), "t2i")
        self.chance = {way: guesses[f"{way}_chance"] for way in WAYS}

    def __call__(self, params: Any) -> dict[str, float]:
        z = np.asarray(self._model.finish_image(params, Trunk(pooled=self._images, tokens=None)).pooled)
        w = np.asarray(self._model.finish_text(params, Trunk(pooled=self._captions, tokens=None), self._mask).pooled)
        measure = functools.partial(ranked, chunk=self._chunk, show_progress=False)
        found = measure(z, w, self._of_image, "i2t") | measure(w, z, self._of_caption, "t2i")
        return {way: found[way] for way in WAYS}


def config_of(config: Config, arm: str, seed: int) -> Config:
    """The config of an arm's run."""
    spectral = dataclasses.replace(config.optim.spectral, enabled=arm in ("svd", "power"), **({"rounds": 0} if arm == "svd" else {}))
    return dataclasses.replace(config, seed=seed, optim=dataclasses.replace(config.optim, spectral=spectral))


def begun(run: Run, arm: str) -> TrainState:
    """The state that a run begins with; of the arm `random` with both heads fresh."""
    fresh = run.trainer.init(run.config.seed)
    state = run.begin(fresh)
    heads = {path: np.asarray(leaf) for path, leaf in named(fresh.params) if "/head/" in path}
    return run.trainer.with_weights(state, heads) if arm == "random" else state


def trained(run: Run, state: TrainState, evaluation: Evaluation) -> Curve:
    """R@1 before training and after every so many steps."""
    steps, trainer = run.config.train.steps, run.trainer
    curve = {0: evaluation(state.params)}
    for step, batch in run.batches(0, PartnerLists()):
        if step == steps:
            return curve
        state, _ = trainer.step(state, to_global(trainer.mesh, batch))
        if (step + 1) % EVERY.value == 0:
            curve[step + 1] = evaluation(state.params)
    raise AssertionError("the batches of a run have no end")


def reached(curve: Mapping[int, Mapping[str, float]], value: float) -> float:
    """The first evaluated step at which R@1 (image to text) is `value` or more; infinity if none is."""
    return min((step for step, found in curve.items() if found[WAYS[0]] >= value), default=math.inf)


def show(curves: Mapping[str, list[Curve]], guesses: Mapping[str, float]) -> None:
    """R@1 by step, and when the arms without the warm start are as good as `power`."""
    console, steps = Console(width=200), {*next(iter(curves.values()))[0]}
    shown = sorted({0, max(steps)} | steps & {EVERY.value << k for k in range(16)})
    table = Table(title=f"{SPLIT.value}: R@1 (percent), image to text / back, by step; guessing {guesses[WAYS[0]]:.2f}")
    for column in ("heads", *map(str, shown)):
        table.add_column(column, justify="right")
    for arm, seeds in curves.items():
        values = np.asarray([[[curve[step][way] for way in WAYS] for step in shown] for curve in seeds])
        mean, spread = values.mean(0), values.std(0, ddof=min(1, len(seeds) - 1))
        table.add_row(
            arm, *(" / ".join(f"{m:.1f} ± {s:.1f}" for m, s in zip(*cell, strict=True)) for cell in zip(mean, spread, strict=True))
        )
    console.print(table)
    for arm in [arm for arm in curves if arm not in ("svd", "power") and "power" in curves]:
        for step in shown:
            later = [reached(curve, warm[step][WAYS[0]]) for curve, warm in zip(curves[arm], curves["power"], strict=True)]
            console.print(f"as good as power at step {step}: {arm} at steps {', '.join(map(str, later))}, mean {np.mean(later):.0f}")


def main(argv: list[str]) -> None:
    del argv
    config, evaluation = from_config_dict(CONFIG.value), None
    dataset = read_data(config)
    curves: dict[str, list[Curve]] = {arm: [] for arm in ARMS.value}
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        for seed in range(config.seed, config.seed + SEEDS.value):
            for arm in ARMS.value:
                run = open_run(config_of(config, arm, seed), dataset, checkpoints)
                state = begun(run, arm)
                evaluation = evaluation or Evaluation(run, state.params, SPLIT.value)
                curves[arm].append(trained(run, state, evaluation))
                print(json.dumps({"arm": arm, "seed": seed, "curve": curves[arm][-1]}), flush=True)
    assert evaluation is not None
    show(curves, evaluation.chance)
    if OUT.value is not None:
        Path(OUT.value).write_text(json.dumps({"split": SPLIT.value, "chance": evaluation.chance, "curves": curves}) + "\n")


if __name__ == "__main__":
    app.run(main)
