"""From speech in some languages to speech in another: what a model that heard French and Spanish makes of Russian.

    python -m benchmarks.spoken_transfer --path=FOLDER --workdir=runs/spoken

Tux Paint's stamps, spoken captions paired with English text, so that the text is the same whatever is spoken. Trained on --heard; the
test split's stamps are in no language in training. The table is of the test split, spoken as in training and as in --unheard; a difference
to chance is what the languages share by sound.
"""

import dataclasses
from pathlib import Path

from absl import app, flags

from bacl_jax import data
from bacl_jax.config import from_config_dict
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.restore import restore
from bacl_jax.eval.retrieval import retrieval
from configs import stamps_audio_bacl
from launch import example_table

PATH = flags.DEFINE_string("path", None, "The unpacked package tuxpaint-stamps-default; None: where launch.fetch put it.")
WORKDIR = flags.DEFINE_string("workdir", "runs/spoken", "Folder of the runs.")
HEARD = flags.DEFINE_list("heard", ["fr", "es"], "Languages of training.")
UNHEARD = flags.DEFINE_list("unheard", ["ru"], "Languages of the test alone.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs.", lower_bound=1)


def main(argv: list[str]) -> None:
    base = from_config_dict(stamps_audio_bacl.get_config())
    stamps = dataclasses.replace(base.data.stamps, spoken=tuple(HEARD.value), captions="english")
    settings = dataclasses.replace(base.data, path=PATH.value, stamps=stamps)
    other = dataclasses.replace(settings, stamps=dataclasses.replace(stamps, spoken_test=tuple(UNHEARD.value)))
    heard = data.load(settings)
    asked = {", ".join(HEARD.value): heard, ", ".join(UNHEARD.value): data.load(other)}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in asked}
    for seed in range(SEEDS.value):
        workdir = Path(WORKDIR.value) / f"{seed}"
        example_table.finished(dataclasses.replace(base, seed=seed, data=settings), workdir, heard)
        found = restore(workdir)
        for name, dataset in asked.items():
            results[name].append(retrieval(Embeddings(found.trainer, found.params, dataset, found.tokenizer, found.config, "test")))
    example_table.show(results, "test")


if __name__ == "__main__":
    app.run(main)
