"""Tables for the terminal, training curves, and everything that goes to DIR/plots."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from bacl_jax.eval import benchmark_report
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.pictures import attention_triptych, retrieval_gallery, save, triptychs

# panel -> (name in metrics.jsonl, label in the legend)
STEP_PANELS: dict[str, tuple[tuple[str, str], ...]] = {
    "loss": (
        ("loss", "total"),
        ("loss_contrast", "contrastive"),
        ("log_batch", "log B"),
        ("loss_floor", "floor of the contrastive term"),
        ("loss_local", "local attention"),
        ("loss_match", "matching"),
    ),
    "boundary score of the negatives": (("bs_drawn", "drawn by BNS"), ("bs_uniform", "mean of the candidates")),
    "share of the candidates": (
        ("ambiguous_share", "ambiguous"),
        ("hard_share", "boundary score > 0"),
        ("hard_mass", "weight of those > -eps"),
    ),
    "gradient norm": (("grad_norm", "model"), ("grad_norm_cross_attention", "cross-modal layers"), ("grad_norm_policy", "policy")),
    "schedules": (("alpha", "alpha"), ("temperature", "temperature")),
}
GALLERIES = {"t2i": "image", "t2a": "sound", "t2v": "clip", "t2f": "all together"}
QUERIES = {"i2t": "image", "t2i": "text", "a2t": "sound", "t2a": "text", "v2t": "clip", "t2v": "text", "f2t": "all together", "t2f": "text"}
ASKED = {"image": ("i2t", "images"), "audio": ("a2t", "sounds"), "video": ("v2t", "clips"), "fused": ("f2t", "rows")}  # anchor -> way, name
REFERENCES = {"log B": "--", "floor of the contrastive term": ":"}  # lines to compare with, and how they are drawn
Lines = tuple[tuple[str, str], ...]  # (name of a metric, what it is called) of a panel


def step_panels(records: Sequence[Mapping[str, Any]], panels: Mapping[str, Lines]) -> dict[str, Lines]:
    """The panels and, of several anchors, whose names stand before their metrics, the same of each."""
    return {**panels} | {f"{title}, {anchor}": prefixed(lines, anchor) for anchor in anchors_of(records) for title, lines in panels.items()}


def anchors_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The anchors whose names stand before metrics: several, or none."""
    names = {name for record in records for name in record}
    return [anchor for anchor in ASKED if any(name.startswith(f"{anchor}/") for name in names)]


def prefixed(lines: Lines, prefix: str) -> Lines:
    """The lines of the metrics with this before their names."""
    return tuple((f"{prefix}/{name}", label) for name, label in lines)


def eval_panels(records: Sequence[Mapping[str, Any]], split: str) -> dict[str, Lines]:
    """What was evaluated on a split while training: a panel for each anchor."""
    names = {name for record in records for name in record}
    found = [anchor for anchor, (way, _) in ASKED.items() if f"{split}/retrieval/{way}_R@1" in names] or ["image"]
    alone = len(found) == 1
    return {split if alone else f"{split}, {anchor}": prefixed(eval_lines(anchor, alone=alone), split) for anchor in found}


def eval_lines(anchor: str, *, alone: bool) -> Lines:
    """What is shown of the evaluation of an anchor, the only one (`alone`) or one of several."""
    way = ASKED[anchor][0]
    back, halftrue = f"t2{way[0]}", "halftrue" if alone else f"halftrue/{anchor}"
    return (
        (f"retrieval/{way}_R@1", f"{QUERIES[way]} to text R@1"),
        (f"retrieval/{way}_R@1_all", "... among all captions"),
        (f"retrieval/{back}_R@1", f"text to {GALLERIES[back]} R@1"),
        (f"{halftrue}/halftrue_pairwise", "half-true, pairwise"),
        (f"{halftrue}/halftrue_beat_all", "half-true, beats all"),
    )


def tables(results: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """One table a task; a task without its own form is listed name by name."""
    forms: dict[str, Callable[[Mapping[str, float]], Table]] = {
        "retrieval": _retrieval_table,
        "localization": _localization_table,
        "robustness": _robustness_table,
    }
    others = {task: benchmark_report.table if "n_entries" in metrics else _plain_table for task, metrics in results.items()}
    made = []
    for task, metrics in results.items():
        if task == "halftrue":
            made += [_halftrue_table(own, what) for what, own in _by_anchor(metrics, results.get("retrieval", {})).items()]
        else:
            made.append(forms[task](metrics) if task in forms else others[task](task, metrics))
    return made


def _by_anchor(metrics: Mapping[str, float], beside: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """What is asked about -> its metrics; several anchors have their names before those. beside: the results of `retrieval`, which tell
    what the only one is."""
    if "n" in metrics:
        told = [what for way, what in ASKED.values() if f"{way}_R@1" in beside]
        return {told[0] if told else "images": {**metrics}}
    parts = {what: {name: value for name, value in metrics.items() if name.startswith(f"{anchor}/")} for anchor, (_, what) in ASKED.items()}
    return {what: {name.partition("/")[2]: value for name, value in own.items()} for what, own in parts.items() if own}


def print_tables(results: Mapping[str, Mapping[str, float]], console: Console | None = None) -> None:
    """Print every task's table; 100 columns where the output is no terminal."""
    console = console or Console()
    console = console if console.is_terminal else Console(file=console.file, width=100)
    for table in tables(results):
        console.print(table)


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", min_width=len(title) + 2)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _percentage(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.1f}" if name in metrics else "-"


def _retrieval_table(metrics: Mapping[str, float]) -> Table:
    of = f" of {metrics['n_entries']:.0f}" if "n_entries" in metrics else ""
    further = [name for name in ("MRR", "nDCG") if any(f"{way}_{name}" in metrics for way in QUERIES)]
    what = "images" if "i2t_R@1" in metrics else "rows"
    columns = ("", "R@1", "R@5", "R@10", "mAP", "median rank", *further, "among")
    table = _table(f"retrieval, {metrics['n']:.0f}{of} {what} (percent)", columns)
    for way, query in QUERIES.items():
        from_text = way.startswith("t2")
        label, suffixes = f"{query} to {'text' if not from_text else GALLERIES[way]}", ("", "_all", "_reranked", "_chance")
        among = ("n", "n_images_all", "n", "n") if from_text else ("n_captions", "n_captions_all", "n_captions", "n_captions")
        words = ("", f", all {'captions' if not from_text else 'images'}", ", re-ranked", ", chance")
        for suffix, gallery, word in zip(suffixes, among, words, strict=True):
            if f"{way}_R@1{suffix}" in metrics:
                names = ("R@1", "R@5", "R@10", "mAP", "median_rank", *further)
                numbers = [_percentage(metrics, f"{way}_{name}{suffix}") for name in names]
                table.add_row(label + word, *numbers, f"{metrics[gallery]:.0f}")
    return table


def _halftrue_table(metrics: Mapping[str, float], what: str) -> Table:
    columns = ("", "accuracy", "blind", "chance")
    table = _table(f"half-true captions, {metrics['n']:.0f} {what}, {metrics['n_pairs']:.0f} pairs (percent)", columns)
    if not metrics["n"]:
        table.add_row("no caption of this split has a half-true neighbour", *"---")
        return table
    rows = {"halftrue_beat_all": "beats all its neighbours", "halftrue_pairwise": "pairwise"}
    rows |= {name: "  " + name.partition("/")[2] for name in metrics if "/" in name and not name.endswith(("_blind", "_chance"))}
    for name, text in rows.items():
        table.add_row(text, *(_percentage(metrics, name + suffix) for suffix in ("", "_blind", "_chance")))
    return table


def _localization_table(metrics: Mapping[str, float]) -> Table:
    columns = ("", "all patches", "foreground", "token side")
    table = _table(f"attention error localisation, {metrics['n']:.0f} pairs (percent)", columns)
    if not metrics["n"]:
        table.add_row("no half-true pair with both images in one style", "-", "-", "-")
        return table
    rows = {"this model": "", "baseline head": "_baseline", "untrained": "_untrained", "chance": "_chance"}
    for label, suffix in rows.items():
        numbers = [_percentage(metrics, f"{name}{suffix}") for name in ("ael", "ael_foreground", "ael_token")]
        if set(numbers) != {"-"}:
            table.add_row(label, *numbers)
    return table


def _robustness_table(metrics: Mapping[str, float]) -> Table:
    """A row for each kind and rate: R@1 in both directions and by how much less it is than of the captions as they are."""
    columns = ("captions", "image to text R@1", "change", "text to image R@1", "change")
    table = _table(f"robustness, {metrics['n']:.0f} images, {metrics['n_captions']:.0f} captions (percent)", columns)
    names = ("i2t_R@1", "t2i_R@1")
    table.add_row("as they are", *(text for name in names for text in (_percentage(metrics, name), "")))
    for under in (name.partition("/")[2] for name in metrics if name.startswith("i2t_R@1/")):
        numbers = [text for name in names for text in (f"{metrics[f'{name}/{under}']:.1f}", f"{0 - metrics[f'{name}_lost/{under}']:+.1f}")]
        table.add_row(under.replace("_", " "), *numbers)
    table.add_row("chance", *(text for name in names for text in (_percentage(metrics, f"{name}_chance"), "")))
    return table


def _plain_table(task: str, metrics: Mapping[str, float]) -> Table:
    table = _table(task, ("metric", "value"))
    for name, value in metrics.items():
        table.add_row(name, f"{value:g}")
    return table


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that is no object with a step, such as a last line that is not written to its end, is left out."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [record for line in lines if line.endswith("\n") and (record := _record(line)) is not None]


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int | float) and 0 <= step < 2**53 else None


def training_curves(records: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> Path:
    """Loss terms, evaluations, boundary scores, shares, gradient norms and schedules over the steps, as far as they were logged."""

    def series(name: str) -> tuple[list[float], list[float]]:
        found = [(record["step"], record[name]) for record in records if record.get(name) is not None]
        return [step for step, _ in found], [value for _, value in found]

    split = next((name.split("/")[0] for record in records for name in record if name.count("/") == 2), None)
    panels = dict(list(STEP_PANELS.items())[:1])
    if split:
        panels |= {f"{title} (percent)": lines for title, lines in eval_panels(records, split).items()}
    panels |= step_panels(records, STEP_PANELS)
    panels = {title: [(label, *series(name)) for name, label in lines] for title, lines in panels.items()}
    panels = {title: [line for line in lines if line[1]] for title, lines in panels.items()}
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        raise ValueError(f"nothing to draw in {path}: no record holds a known metric")
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(13, 3.9 * rows), layout="constrained")
    axes = list(figure.subplots(rows, min(3, len(panels)), squeeze=False).flat)
    for ax, (title, lines) in zip(axes, panels.items(), strict=False):
        for label, steps, values in lines:
            style = {"color": "#98a2b3", "ls": REFERENCES[label]} if label in REFERENCES else {"marker": "o" if len(steps) < 30 else None}
            ax.plot(steps, values, label=label, lw=1.4, ms=3, **style)
        ax.set_title(title, loc="left", fontsize=11)
        ax.set_xlabel("step")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        if title.startswith("gradient norm"):
            ax.set_yscale("log")
        ax.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return save(figure, path)


def write_plots(workdir: str | os.PathLike, embeddings: Embeddings, folder_name: str = "plots") -> list[Path]:
    """Write what there is to show to workdir/<folder_name>/*.png and return the paths.

    curves.png where metrics.jsonl has records; of pictures alone gallery.png; attention.png where CLA is enabled and half-true pairs exist.
    """
    folder, paths = Path(workdir) / folder_name, []
    log = Path(workdir) / "metrics.jsonl"
    if log.exists() and (records := read_metrics(log)):
        paths.append(training_curves(records, folder / "curves.png"))
    if embeddings.config.data.anchors != ("image",):
        return paths
    paths.append(retrieval_gallery(embeddings, folder / "gallery.png"))
    if embeddings.config.objective.cla.enabled and (rows := triptychs(embeddings)):
        paths.append(save(attention_triptych(rows, embeddings.trainer.grid), folder / "attention.png"))
    return paths
