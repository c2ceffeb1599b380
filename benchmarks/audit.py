"""How well the audit finds what is known to be wrong: a copy of the emoji pairs with shuffled captions, and the figures of its lists.

    python -m benchmarks.audit --make=noisy --seed=0
    python -m launch.train --config=configs/emoji_bacl.py --workdir=runs/noisy --config.data.kind=manifest \\
        --config.data.path=noisy/pairs.csv --config.data.split_column=split --config.train.save_every=100 --config.train.keep=20
    python -m launch.evaluate --workdir=runs/noisy --tasks=audit --step=500
    python -m benchmarks.audit --truth=noisy --found=runs/noisy/eval/500/audit
    python -m benchmarks.audit --truth=noisy --runs=runs/noisy

--make    folder for a copy of the emoji set: --share of the training captions shuffled by --seed, --copies pictures added of each kind
--truth   such a folder. With --found, a folder of lists: precision of each list. With --runs: precision of each score, at each checkpoint
          that the run has kept and averaged over several; several runs, separated by commas, audit their --split each (folds).

P: share of shuffled pairs among the first n, n being their number. AP: average precision. AUC: area under the ROC curve. In percent.
"""

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from absl import app, flags
from jaxtyping import Bool, Float
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from bacl_jax.config import DataConfig
from bacl_jax.eval import audit, corpus
from bacl_jax.eval.neighbours import pictures_and_captions
from bacl_jax.eval.restore import restore
from bacl_jax.train.checkpoint import Checkpoints
from benchmarks import noisy_copy

MAKE = flags.DEFINE_string("make", None, "Folder to write a copy to.")
SEED = flags.DEFINE_integer("seed", 0, "Draws what is shuffled and copied.", lower_bound=0)
SHARE = flags.DEFINE_float("share", 0.1, "Share of the training captions that are shuffled.", lower_bound=0, upper_bound=1)
COPIES = flags.DEFINE_integer("copies", 0, "Pictures added of each kind: copied, saved anew, renamed.", lower_bound=0)
TRUTH = flags.DEFINE_string("truth", None, "Folder of a copy.")
FOUND = flags.DEFINE_string("found", None, "Folder of an audit's lists.")
RUNS = flags.DEFINE_list("runs", [], "Workdirs whose checkpoints are compared.")
SPLIT = flags.DEFINE_enum("split", "train", ["train", "validation"], "What each of the runs looks at.")

SCORES: dict[str, Callable[[audit.Scores], Float[np.ndarray, " P"]]] = {
    "similarity": lambda one: -one.similarity,
    "boundary, image": lambda one: one.boundary_image,
    "boundary, text": lambda one: one.boundary_text,
    "boundary, both": lambda one: (one.boundary_image + one.boundary_text) / 2,
    "halfway": audit.wrongness,
    "not mutual, then halfway": lambda one: audit.wrongness(one) + 10.0 * ~one.mutual,
    "ranks": lambda one: np.log(one.caption_rank) + np.log(one.image_rank),
}


def average_precision(score: Float[np.ndarray, " P"], wrong: Bool[np.ndarray, " P"]) -> float:
    """Mean, over the wrong pairs, of the precision of the list that ends with each."""
    hit = wrong[np.argsort(-score, kind="stable")]
    return float((np.cumsum(hit) / np.arange(1, len(hit) + 1))[hit].mean())


def roc_auc(score: Float[np.ndarray, " P"], wrong: Bool[np.ndarray, " P"]) -> float:
    """Chance that a wrong pair scores above a right one, ties counted half."""
    n = wrong.sum()
    return float((rankdata(score)[wrong].sum() - n * (n + 1) / 2) / (n * (len(wrong) - n)))


def precision(score: Float[np.ndarray, " P"], wrong: Bool[np.ndarray, " P"]) -> float:
    """Share of wrong pairs among as many as there are of them."""
    return float(wrong[np.argsort(-score, kind="stable")][: wrong.sum()].mean())


def figures(score: Float[np.ndarray, " P"], wrong: Bool[np.ndarray, " P"]) -> str:
    return f"{100 * precision(score, wrong):.1f} / {100 * average_precision(score, wrong):.1f} / {100 * roc_auc(score, wrong):.1f}"


def truth_of(folder: str) -> dict[str, dict[str, str]]:
    """Picture path -> its row of truth.csv."""
    with (Path(folder) / "truth.csv").open(newline="", encoding="utf-8") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def of_lists(truth: dict[str, dict[str, str]], folder: Path) -> Iterator[tuple[str, str]]:
    """Figures of the lists that an audit wrote."""
    pairs, doubled, unknown = (pd.read_csv(folder / f"{name}.csv") for name in ("pairs", "duplicates", "false_negatives"))
    wrong = np.array([truth[key]["what"] == "shuffled" for key in pairs.key])
    yield "pairs", f"{len(pairs):,}, of them shuffled {wrong.sum():,}"
    if wrong.any():
        yield "likely wrong pairs, P / AP / AUC", figures(-np.arange(len(pairs), dtype=float), wrong)
        right = [truth[key]["true_caption"] == caption for key, caption in zip(pairs.key[wrong], pairs.better_caption[wrong], strict=True)]
        yield "the better caption of a shuffled pair is its true one", f"{100 * np.mean(right):.1f}"
    known = {frozenset((key, row["of"])) for key, row in truth.items() if row["of"]}
    if not known:
        return
    hit = np.array([frozenset(two) in known for two in zip(doubled.key, doubled.other_key, strict=True)])
    for kind in ("exact", "near"):
        yield f"duplicates, {kind}: precision", f"{100 * hit[doubled.kind == kind].mean():.1f} of {(doubled.kind == kind).sum()}"
    yield "duplicates: found of those known", f"{100 * hit.sum() / len(known):.1f} of {len(known)}"
    listed = zip(unknown.key, unknown.other_caption, strict=True)
    same = np.array([words(truth[key]["true_caption"]) == words(other) for key, other in listed])
    for first in (50, 100, 200):
        yield f"false negatives: precision of the first {first}", f"{100 * same[:first].mean():.1f}"


def words(caption: str) -> tuple[str, ...]:
    return tuple(sorted(caption.split()))


def of_checkpoints(truth: dict[str, dict[str, str]], workdirs: list[str], split: str) -> Table:
    """P / AP / AUC of each score, a row each for single checkpoints and for means over the first ones."""
    found = [scores_of(workdir, split) for workdir in workdirs]
    wrong = np.concatenate([[truth[key]["what"] == "shuffled" for key in keys] for keys, _ in found])
    steps = sorted(set.intersection(*(set(scores) for _, scores in found)))
    table = Table("steps", *SCORES, title=f"{len(wrong):,} pairs, {wrong.sum():,} of them shuffled; P / AP / AUC", title_justify="left")
    single, means = [[step] for step in steps], [steps[: count + 1] for count in range(1, len(steps))]
    for chosen in single + means:
        label = f"mean of {chosen[0]} ... {chosen[-1]}" if len(chosen) > 1 else str(chosen[0])
        columns = [
            np.concatenate([np.mean([score(scores[step]) for step in chosen], axis=0) for _, scores in found]) for score in SCORES.values()
        ]
        table.add_row(label, *(figures(column, wrong) for column in columns))
    return table


def scores_of(workdir: str, split: str) -> tuple[list[str], dict[int, audit.Scores]]:
    """(key of each pair, step -> scores) of every checkpoint that the run has kept."""
    run = restore(workdir)
    source = run.dataset.train if split == "train" else run.dataset.splits[split].source
    scores: dict[int, audit.Scores] = {}
    keys: list[str] = []
    with Checkpoints(workdir, read_only=True) as checkpoints:
        for step in checkpoints.steps():
            _, params = checkpoints.restore_params(run.trainer.abstract_params(), step)
            pairs = corpus.read(run.trainer, params, run.tokenizer, source, run.config)
            scores[step] = audit.scores(pairs, *pictures_and_captions(pairs, run.config.eval.audit.k))
            keys = [pairs.keys[i] for i in pairs.image]
    return keys, scores


def main(argv: list[str]) -> None:
    if MAKE.value:
        rows = noisy_copy.rows(DataConfig(), share=SHARE.value, copies=COPIES.value, seed=SEED.value)
        print(noisy_copy.write(Path(MAKE.value), rows, SEED.value))
    elif TRUTH.value and FOUND.value:
        print("\n".join(f"{name}: {value}" for name, value in of_lists(truth_of(TRUTH.value), Path(FOUND.value))))
    elif TRUTH.value and RUNS.value:
        Console(width=200).print(of_checkpoints(truth_of(TRUTH.value), RUNS.value, SPLIT.value))
    else:
        sys.exit("error: give --make, or --truth with --found or --runs; " + str(__doc__).split("\n")[0])


if __name__ == "__main__":
    app.run(main)
