"""What a published text tower knows that training captions do not tell: retrieval by captions with words never seen in training.

    python -m launch.precompute --config=configs/emoji_minilm.py --workdir=runs/features --config.data.holdout=words
    python -m launch.train --config=configs/emoji_minilm.py --workdir=runs/minilm --config.data.holdout=words \\
        --config.data.features=runs/features
    python -m launch.train --config=configs/emoji_bacl.py --workdir=runs/scratch --config.data.holdout=words
    python -m benchmarks.unseen_words --runs=runs/minilm,runs/scratch

A row a run, in percent: R@1 and R@10 on all of --split; of the captions that hold an unseen word and a seen one ("partly"); of those all of
whose words are unseen ("wholly"). Each is sought among all captions of the split, or all of its images. Ties count half. Below, what
guessing gets.
"""

import functools
from collections.abc import Mapping

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.restore import restore
from bacl_jax.eval.retrieval import chance, own_pairs, ranked

RUNS = flags.DEFINE_list("runs", None, "Workdirs, separated by commas.", required=True)
SPLIT = flags.DEFINE_string("split", "test", "validation or test.")
GROUPS = ("all", "partly", "wholly")


def measured(workdir: str, split: str) -> tuple[dict[str, Mapping[str, float]], dict[str, Mapping[str, float]], dict[str, int]]:
    """Of each of GROUPS: metrics, what guessing gets, and the number of captions."""
    found = restore(workdir)
    embeddings = Embeddings(found.trainer, found.params, found.dataset, found.tokenizer, found.config, split)
    images, captions, of_image, of_caption = own_pairs(embeddings)
    seen = {word for caption in found.dataset.training_captions() for word in caption.split()}
    unseen = np.asarray([np.mean([word not in seen for word in found.dataset.captions[c].split()]) for c in captions])
    chosen = {"all": np.arange(len(captions)), "partly": np.flatnonzero((unseen > 0) & (unseen < 1)), "wholly": np.flatnonzero(unseen == 1)}
    z, w = embeddings.images[images], embeddings.captions[captions]
    measure = functools.partial(ranked, chunk=found.config.eval.chunk, show_progress=False)
    scores, guesses = {}, {}
    for name, some in chosen.items():
        rows = [i for i, own in enumerate(of_image) if set(own) & set(some.tolist())]
        right, back = [of_image[i] for i in rows], [of_caption[c] for c in some]
        scores[name] = measure(z[rows], w, right, "i2t") | measure(w[some], z, back, "t2i")
        guesses[name] = chance(right, len(w), "i2t") | chance(back, len(z), "t2i")
    return scores, guesses, {name: len(some) for name, some in chosen.items()}


def main(argv: list[str]) -> None:
    del argv
    table = Table(title=f"{SPLIT.value} (percent)")
    names = [f"{way}_R@{k}" for way in ("i2t", "t2i") for k in (1, 10)]
    for column in ("run", "captions", *names):
        table.add_column(column, justify="right")
    rows: dict[str, list[tuple[str, Mapping[str, float], int]]] = {name: [] for name in GROUPS}
    guesses = {}
    for workdir in RUNS.value:
        scores, guesses, counts = measured(workdir, SPLIT.value)
        for name in GROUPS:
            rows[name].append((workdir, scores[name], counts[name]))
    for name in GROUPS:
        for workdir, metrics, count in rows[name]:
            table.add_row(workdir, f"{name} {count}", *(f"{metrics[one]:.1f}" for one in names))
        table.add_row("guessing", name, *(f"{guesses[name][f'{one}_chance']:.1f}" for one in names), end_section=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    app.run(main)
