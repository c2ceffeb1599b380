"""Compositional benchmarks: does a picture score its own caption above one that is nearly the same?

Every number x comes with x_chance, what a model scores that ties everything, and x_blind, what the texts alone give away: the same
with each picture replaced by the mean embedding of the benchmark's other pictures. Ties follow eval/retrieval.py; an answer that rests on
several comparisons counts the share of all orders of its scores, tied ones shuffled, in which it is right: one half for a tied pair, 1/6
for Winoground's group of four.

Dimension legend: N entries, P pictures and C captions of each, K scores of an entry, A different pictures, D embedding width.
"""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from bacl_jax.config import ConfigError
from bacl_jax.config_eval import BenchmarkConfig
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.formats import READERS, Entry, LeftOut, counted
from bacl_jax.eval.retrieval import TIE
from bacl_jax.settings import how_to_set

Beats = tuple[tuple[int, int], ...]  # (a, b): score a must be above score b
FIRST = {"accuracy": ((0, 1),)}
# Scores are numbered picture by picture, caption by caption. Of two pictures and captions: 0 = own, 1 and 2 = wrong, 3 = own.
MEASURES: dict[str, dict[str, Beats]] = {
    "sugarcrepe": FIRST,
    "sugarcrepe_pp": {"accuracy": ((0, 2), (1, 2))},
    "winoground": {
        "text_score": ((0, 1), (3, 2)),
        "image_score": ((0, 2), (3, 1)),
        "group_score": ((0, 1), (3, 2), (0, 2), (3, 1)),
    },
    "aro": FIRST,
    "valse": FIRST,
}
LEAST = {"attribution": 25}  # entries that a category needs to be listed, as ARO's authors do
BLOCK = 1024  # entries scored at a time


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a benchmark gives: its numbers (percentages as 0-100), and which entries were not scored."""

    metrics: dict[str, float]
    left_out: list[LeftOut]


def expected(scores: Float[np.ndarray, "N K"], beats: Beats) -> Float[np.ndarray, " N"]:
    """Chance, for each row, that score a is above score b for all (a, b) when tied scores are put in a random order."""
    orders = list(itertools.permutations(range(scores.shape[1])))
    total = np.zeros(len(scores))
    for order in orders:
        won = np.ones(len(scores), bool)
        for a, b in beats:
            difference = scores[:, a] - scores[:, b]
            won &= np.where(np.abs(difference) <= TIE, order[a] > order[b], difference > 0)
        total += won
    return total / len(orders)


def chance(beats: Beats) -> float:
    """`expected` where all scores are tied."""
    return float(expected(np.zeros((1, 1 + max(itertools.chain(*beats)))), beats)[0])


def compositional(task: str, encoder: Encoder) -> Outcome:
    """One of the tasks of `MEASURES`, over the files that eval.<task> names.

    An entry whose picture is missing or cannot be read is left out and listed. `n`: entries scored; `n_entries`: entries of the files;
    `left_out/<reason>`: the others. Host memory: 4 D bytes for each different picture and caption.
    """
    settings: BenchmarkConfig = getattr(encoder.config.eval, task)
    path, images = paths(task, settings)
    entries, left_out = READERS[task](path)
    total = len(entries) + len(left_out)
    place = {shown: number for number, shown in enumerate(dict.fromkeys(shown for entry in entries for shown in entry.pictures))}
    z, errors = encoder.pictures(images, list(place))
    scored = []
    for entry in entries:
        bad = [shown for shown in entry.pictures if place[shown] in errors]
        if bad:
            error = errors[place[bad[0]]]
            left_out.append(LeftOut(entry.file, entry.key, bad[0].names[0], error.kind, str(error)))
        else:
            scored.append(entry)
    metrics: dict[str, float] = {}
    if scored:
        texts = list(dict.fromkeys(caption for entry in scored for caption in entry.captions))
        metrics = _measured(task, scored, z, [[place[shown] for shown in entry.pictures] for entry in scored], encoder, texts)
    metrics |= {"n": len(scored), "n_entries": total, "n_pictures": len(place) - len(errors)}
    return Outcome(metrics | counted(left_out), left_out)


def paths(task: str, settings: BenchmarkConfig) -> tuple[Path, Path]:
    """(annotations, folder of pictures): by default `images` beside the annotations. ConfigError where the config has none."""
    field = f"config.eval.{task}"
    if settings.path is None:
        raise ConfigError(f"{field}.path = None: must name the benchmark's file or folder; {how_to_set(f'{field}.path')}")
    path = Path(settings.path)
    if settings.images is None:
        return path, (path if path.is_dir() else path.parent) / "images"
    if not Path(settings.images).is_dir():
        raise ConfigError(f"{field}.images = {settings.images!r}: is no folder; {how_to_set(f'{field}.images')}")
    return path, Path(settings.images)


def _measured(
    task: str, entries: Sequence[Entry], z: Float[np.ndarray, "A D"], pictures: list[list[int]], encoder: Encoder, texts: list[str]
) -> dict[str, float]:
    number = {text: i for i, text in enumerate(texts)}
    w = encoder.texts(texts)
    captions = np.asarray([[number[caption] for caption in entry.captions] for entry in entries])
    scores, blind = pair_scores(z, w, np.asarray(pictures), captions)
    metrics: dict[str, float] = {}
    for measure, beats in MEASURES[task].items():
        numbers = {"": expected(scores, beats), "_blind": expected(blind, beats)}
        metrics |= _over_categories(measure, entries, numbers, chance(beats))
    if task == "sugarcrepe_pp":
        metrics |= _text_only(entries, w, captions)
    categories = collections.Counter(entry.part or entry.category for entry in entries)
    metrics |= {f"n/{name}": count for name, count in sorted(categories.items()) if name}
    return metrics | encoder.text_statistics(texts)


def pair_scores(
    z: Float[np.ndarray, "A D"], w: Float[np.ndarray, "M D"], pictures: Int[np.ndarray, "N P"], captions: Int[np.ndarray, "N C"]
) -> tuple[Float[np.ndarray, "N K"], Float[np.ndarray, "N K"]]:
    """(scores of each entry's pictures with each of its captions, the same without the pictures), K = P C.

    Without the pictures: each is replaced by the direction of the mean of all pictures that are not the entry's; zero where there are none.
    """
    total = z.sum(axis=0, dtype=np.float64)
    seen, blind = [], []
    for start in range(0, len(pictures), BLOCK):
        rows = pictures[start : start + BLOCK]
        own, words = z[rows], w[captions[start : start + BLOCK]]
        new = np.stack([(rows[:, :i] != rows[:, i : i + 1]).all(axis=1) for i in range(rows.shape[1])], axis=1)
        others = total - np.einsum("npd,np->nd", own.astype(np.float64), new)
        length = np.linalg.norm(others, axis=1, keepdims=True)
        others = np.where(length > TIE, others / np.maximum(length, TIE), 0.0)
        seen.append(np.einsum("npd,ncd->npc", own, words).reshape(len(own), -1))
        blind.append(np.repeat(np.einsum("nd,ncd->nc", others, words)[:, None], own.shape[1], axis=1).reshape(len(own), -1))
    return np.concatenate(seen), np.concatenate(blind)


def _over_categories(measure: str, entries: Sequence[Entry], numbers: Mapping[str, np.ndarray], guessed: float) -> dict[str, float]:
    """`measure` over all entries, over each category or part, and `_macro`: the mean over these; in each part, over its categories."""
    metrics = _summary(measure, "", [entry.part or entry.category for entry in entries], numbers, guessed, 1)
    for part in sorted({entry.part for entry in entries} - {""}):
        rows = np.asarray([entry.part == part for entry in entries])
        within = [entry.category for entry in entries if entry.part == part]
        metrics |= _summary(
            measure, f"/{part}", within, {suffix: values[rows] for suffix, values in numbers.items()}, guessed, LEAST.get(part, 1)
        )
    return metrics


def _summary(
    measure: str, under: str, categories: Sequence[str], numbers: Mapping[str, np.ndarray], guessed: float, least: int
) -> dict[str, float]:
    counts = collections.Counter(categories)
    listed = [name for name in sorted(counts) if name and counts[name] >= least]
    labels = np.asarray(categories)
    metrics: dict[str, float] = {}
    for suffix, values in numbers.items():
        metrics[f"{measure}{under}{suffix}"] = 100 * float(values.mean())
        each = {name: 100 * float(values[labels == name].mean()) for name in listed}
        if each:
            metrics[f"{measure}_macro{under}{suffix}"] = float(np.mean(list(each.values())))
        metrics |= {f"{measure}{under}/{name}{suffix}": value for name, value in each.items()}
    plain = [name for name in metrics if not name.endswith("_blind")]
    return metrics | {f"{name}_chance": 100 * guessed for name in plain}


def _text_only(entries: Sequence[Entry], w: Float[np.ndarray, "M D"], captions: Int[np.ndarray, "N 3"]) -> dict[str, float]:
    """SugarCrepe++'s text-only task: both right captions are nearer to each other than either is to the wrong one."""
    first, second, wrong = (w[column] for column in captions.T)
    scores = np.stack([np.sum(a * b, axis=1) for a, b in ((first, second), (first, wrong), (second, wrong))], axis=1)
    beats = ((0, 1), (0, 2))
    return _over_categories("text_only", entries, {"": expected(scores, beats)}, chance(beats))
