"""DIR/report/index.html: a run as one page that needs no network, made of the run's files and of examples of what its model does.

Texts that come from data are escaped by the template; a policy in the page's head lets nothing run or load but what the page brings along.
"""

import base64
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from bacl_jax.config import Config, flatten
from bacl_jax.eval import page_charts
from bacl_jax.eval.examples import Examples
from bacl_jax.eval.page_attention import views
from bacl_jax.eval.page_charts import Chart, Line
from bacl_jax.eval.page_record import (
    Record,
    Table,
    bases,
    grouped,
    heading,
    is_count,
    is_score,
    label,
    read,
    shown,
    task_table,
    time_table,
)
from bacl_jax.eval.report import ASKED, QUERIES, Lines, anchors_of, eval_lines, eval_panels, prefixed
from bacl_jax.train import goodput

# title, what it shows, (metric, label); beside the losses and evaluations
LOSSES = (
    ("loss", "total"),
    ("loss_contrast", "contrastive"),
    ("loss_local", "local attention"),
    ("loss_match", "matching"),
    ("log_batch", "log B, guessing"),
    ("loss_floor", "floor of the contrastive term"),
)
TRAINING = (
    (
        "gradient norm",
        "Before clipping.",
        (("grad_norm", "model"), ("grad_norm_cross_attention", "cross-modal layers"), ("grad_norm_policy", "policy")),
    ),
    ("temperature", "One over the scale of the similarities.", (("temperature", "temperature"),)),
    ("learning rate", "Of the model.", (("lr", "learning rate"),)),
    ("matching of captions", "Share of rows whose own caption matches better than the drawn one.", (("match_accuracy", "accuracy"),)),
    ("policy's loss", "Of the sampler, before its weight.", (("loss_policy", "policy"),)),
)
DRAWN = (
    ("bs_drawn_p10", "drawn, a tenth lies lower"),
    ("bs_drawn_p90", "drawn, a tenth lies higher"),
    ("bs_drawn_p50", "drawn, median"),
    ("bs_drawn", "drawn, weighted mean"),
    ("bs_uniform", "mean of all candidates"),
)
CURRICULUM = (
    ("alpha", "Above 0 the schedule avoids hard negatives, below 0 it seeks them.", (("alpha", "alpha"),)),
    (
        "hardness",
        "Boundary scores of the candidates: weight of those above −eps in the draw, share above 0.",
        (("hard_mass", "weight of the hard"), ("hard_share", "share above 0")),
    ),
    ("ambiguous share", "Share of the candidates whose boundary score is within eps of 0.", (("ambiguous_share", "ambiguous"),)),
    (
        "false-positive share",
        "Share of the anchors whose drawn negative scores above the truth.",
        (("false_positive_share", "false positives"),),
    ),
    ("entropy of the draw", "In nats, without the noise.", (("q_entropy", "entropy"),)),
)
COMPARED = (("loss", "loss"), ("loss_contrast", "contrastive loss"), ("grad_norm", "gradient norm"), ("temperature", "temperature"))


def write(workdir: str | os.PathLike[str], examples: Examples | None = None, compare: Sequence[str | os.PathLike[str]] = ()) -> Path:
    """Writes the page of `workdir` and returns its path; an old one stays until the new one is whole.

    examples: of its model; without them the page says how to get them. compare: workdirs of other runs. Raises ConfigError where one of
    them is no workdir.
    """
    path = Path(workdir) / "report" / "index.html"
    text = render(read(workdir), examples, [read(other) for other in compare])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    return path


def render(run: Record, examples: Examples | None, others: Sequence[Record] = ()) -> str:
    """The page as a text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bacl_jax.eval"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = lambda value: f"{value:+.3f}".replace("-", "−")
    files = {name: environment.get_template(f"report.{name}").render().strip() for name in ("css", "js")}
    runs = named([run, *others])
    charts = {"training": training(run), "curriculum": curriculum(run), "compared": compared(runs) if others else []}
    return environment.get_template("report.html").render(
        run=run,
        style=files["css"],
        script=files["js"],
        digests={name: "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in files.items()},
        headline=headline(run),
        tables=[task_table(results) for results in grouped(run.results).values()],
        charts=charts,
        time=time_table(run.starts),
        data={chart.key: chart.data for group in charts.values() for chart in group},
        examples=examples,
        attention=[] if examples is None else views(examples),
        others=others,
        comparison=[settings_table(runs), *result_tables(runs)] if others else [],
        settings=flatten(run.config),
        defaults=flatten(Config()),
    )


def headline(run: Record) -> dict[str, str]:
    """What a reader wants first: name -> text."""
    objective, last = run.config.objective, run.last
    parts = [name for name, on in (("BNS", objective.bns.enabled), ("CLA", objective.cla.enabled)) if on]
    lines = {
        "Objective": {"infonce": "InfoNCE", "sigmoid": "sigmoid loss", "mmcl": f"MMCL, {objective.mmcl.form}"}[objective.kind]
        + "".join(f" + {part}" for part in parts),
        "Data": f"{run.config.data.kind}" + (f", {run.config.data.path}" if run.config.data.path else ""),
        "Step": f"{last.get('step', 0):,.0f} of {run.config.train.steps:,}",
        "Seed": str(run.config.seed),
    }
    seconds, samples = (page_charts.finite(last.get(name)) for name in ("wall_seconds", "samples_seen"))
    if seconds and samples:
        lines |= {"Time": f"{seconds / 60:,.1f} minutes", "Speed": f"{samples / seconds:,.0f} pairs/s"}
    if run.starts:
        lines["Goodput"] = f"{100 * goodput.shares(goodput.totals(run.starts))['steps']:.1f} %"
    for results in grouped(run.results).values():
        asked = [(f"{way}_R@1", f"{QUERIES[way].capitalize()} to text R@1") for way, _ in ASKED.values()]
        for name, text in (*asked, ("halftrue_beat_all", "Half-true, beats all")):
            if not results[-1].subfolder and results[-1].metrics.get(name) is not None:
                lines[text] = f"{results[-1].metrics[name]:.1f} %"
    return lines


def _charts(run: Record, prefix: str, panels: Sequence[tuple[str, str, Lines]]) -> list[Chart]:
    of_anchors = [
        (f"{title}, {anchor}", description, prefixed(lines, anchor))
        for anchor in anchors_of(run.records)
        for title, description, lines in panels
    ]
    found = (
        page_charts.chart(
            f"{prefix}-{number}",
            title,
            description,
            [page_charts.line(run.records, *each) for each in lines],
            band=lines[0][0].endswith("bs_drawn_p10"),
            log_y=title.startswith("gradient norm"),
        )
        for number, (title, description, lines) in enumerate([*panels, *of_anchors])
    )
    return [chart for chart in found if chart is not None]


def training(run: Record) -> list[Chart]:
    """Losses, evaluations while training, results of checkpoints where several were evaluated, and what else was logged."""
    split = split_of(run)
    evaluations = [(f"evaluation on {title}", "In percent.", lines) for title, lines in eval_panels(run.records, split).items()]
    charts = _charts(
        run, "training", [("loss", "The terms of the objective, before their weights, and their sum.", LOSSES), *evaluations, *TRAINING]
    )
    for number, ((task, data, subfolder), results) in enumerate(grouped(run.results).items()):
        names = [name for name in bases(results[-1].metrics) if is_score(name) and not re.search(r"/|@5|@10", name)][:6]
        records = [{"step": result.step, **result.metrics} for result in results]
        lines = [page_charts.line(records, name, label(name)) for name in names]
        where = " ".join(part for part in (data, subfolder) if part)
        chart = page_charts.chart(f"steps-{number}", f"{task} over checkpoints", f"{where}, in percent." if where else "In percent.", lines)
        if chart is not None and len(results) > 1:
            charts.append(chart)
    return charts


def curriculum(run: Record) -> list[Chart]:
    """The curriculum's life; empty for a run without BNS."""
    first, *rest = CURRICULUM
    drawn = (
        "boundary score of what is drawn",
        "The negative’s similarity less the truth’s: near 0 is ambiguous. Shaded: eight of ten anchors.",
        DRAWN,
    )
    return _charts(run, "curriculum", [first, drawn, *rest])


def split_of(run: Record) -> str:
    """The split that was evaluated while training."""
    return next((name.split("/")[0] for record in run.records for name in record if name.count("/") == 2), run.config.eval.split)


def named(runs: Sequence[Record]) -> dict[str, Record]:
    """The runs by names that tell them apart."""
    names: dict[str, Record] = {}
    for run in runs:
        number = sum(other.name == run.name for other in names.values())
        names[run.name if not number else f"{run.name} ({number + 1})"] = run
    return names


def compared(runs: Mapping[str, Record]) -> list[Chart]:
    """One chart a metric, one line a run."""
    panels = [(name, title, "", [(run, name) for run in runs.values()]) for name, title in COMPARED]
    panels += [
        (name, label(name.partition("/")[2]), "In percent, while training.", [(run, f"{split_of(run)}/{name}") for run in runs.values()])
        for name in dict.fromkeys(name for alone in (True, False) for anchor in ASKED for name, _ in eval_lines(anchor, alone=alone))
    ]
    charts = []
    for key, title, description, columns in panels:
        lines: list[Line | None] = [page_charts.line(run.records, name, text) for text, (run, name) in zip(runs, columns, strict=True)]
        charts.append(page_charts.chart(f"compared-{key}", title, description, lines, log_y=key == "grad_norm"))
    return [chart for chart in charts if chart is not None]


def settings_table(runs: Mapping[str, Record]) -> Table:
    """The fields in which the runs differ."""
    settings = [flatten(run.config) for run in runs.values()]
    fields = dict.fromkeys(field for each in settings for field in each)
    rows = [(field, *(str(each.get(field, "–")) for each in settings)) for field in fields]
    return Table("settings that differ", ("field", *runs), tuple(row for row in rows if len(set(row[1:])) > 1))


def result_tables(runs: Mapping[str, Record]) -> list[Table]:
    """For every task the newest results of all runs beside chance, the best score of a row stressed."""
    newest = [{key: results[-1] for key, results in grouped(run.results).items()} for run in runs.values()]
    tables = []
    for key in dict.fromkeys(key for each in newest for key in each):
        there = [{} if key not in each else each[key].metrics for each in newest]
        known = {name: value for metrics in there for name, value in metrics.items()}
        names = [name + suffix for name in bases(known) for suffix in ("", "_baseline") if name + suffix in known and not is_count(name)]
        rows, strong = [], set()
        for row, name in enumerate(names):
            values = [metrics.get(name) for metrics in there]
            chance = known.get(f"{name.removesuffix('_baseline')}_chance")
            rows.append((label(name), *(shown(name, value) for value in (*values, chance))))
            numbers = [value for value in values if value is not None]
            if is_score(name) and len(numbers) > 1:
                strong |= {(row, column) for column, value in enumerate(values) if value == max(numbers)}
        heads = [f"{text}, step {each[key].step:,}" if key in each else text for text, each in zip(runs, newest, strict=True)]
        columns = len(heads) + 1 + any(name.endswith("_chance") for name in known)
        tables.append(Table(heading(*key), ("", *heads, "chance")[:columns], tuple(row[:columns] for row in rows), frozenset(strong)))
    return tables
