"""Runs evaluation tasks by name and writes their results in the fixed form that scripts read."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bacl_jax.config import Config, ConfigError
from bacl_jax.eval.benchmarks import MEASURES, Outcome, compositional
from bacl_jax.eval.caption_retrieval import captioned_retrieval
from bacl_jax.eval.compositional import halftrue
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.fusion import fusion
from bacl_jax.eval.localization import localization
from bacl_jax.eval.probe import probe
from bacl_jax.eval.rerank import split_retrieval
from bacl_jax.eval.robustness import captioned_robustness, split_robustness
from bacl_jax.eval.tasks import check_tasks
from bacl_jax.eval.zeroshot import classification

BENCHMARKS: dict[str, Callable[[Encoder], Outcome]] = {  # on data of their own, which eval.<task> names
    "classification": classification,
    "probe": probe,
    "retrieval": captioned_retrieval,  # this and the next where eval.retrieval names a file, see `on_files`
    "robustness": captioned_robustness,
    **{task: partial(compositional, task) for task in MEASURES},
}
TASKS = {"retrieval": split_retrieval, "halftrue": halftrue, "localization": localization, "robustness": split_robustness, "fusion": fusion}
FILES = {"robustness": "retrieval"}  # the group of eval.* that names a task's files, where it has another name than the task


def on_files(config: Config, tasks: Sequence[str]) -> list[str]:
    """Those of the tasks that are asked of data of their own, not of a split of the run's."""
    return [task for task in tasks if task in BENCHMARKS and (task not in TASKS or path_of(config, task) is not None)]


def path_of(config: Config, task: str) -> str | None:
    """The files of a task on data of its own."""
    return getattr(config.eval, FILES.get(task, task)).path


def subfolder_of(config: Config, task: str) -> str:
    """Where its results go in DIR/eval/<step>: those of a task that the run's own data have, too, do not replace the run's report, nor
    those of another split of the file or of the run's data."""
    return f"{Path(str(path_of(config, task))).stem}_{config.eval.retrieval.split}" if task in TASKS else ""


def evaluate(
    trainer: Any,
    params: Any,
    dataset: Any,
    tokenizer: Any,
    config: Config,
    tasks: Sequence[str],
    split: str,
    *,
    show_progress: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, dict[str, float]]:
    """Run `tasks` on one split; task name -> metric name -> number (percentages as 0-100).

    options: keyword arguments of a task by its name, such as {"retrieval": {"all_images": False}}.
    Captions and images are encoded once for all tasks.
    """
    embeddings = Embeddings(trainer, params, dataset, tokenizer, config, split, show_progress=show_progress)
    return measure(embeddings, tasks, options)


def measure(
    embeddings: Embeddings, tasks: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, float]]:
    """The same of what is encoded already, or will be for what comes after."""
    check_tasks(tasks)
    options = options or {}
    if stray := sorted(set(options) - set(TASKS)):
        raise ConfigError(f"options for an unknown task: {', '.join(stray)}; allowed: {', '.join(TASKS)}")
    return {task: TASKS[task](embeddings, **options.get(task, {})) for task in tasks}


def write(
    workdir: str | os.PathLike, step: int, results: Mapping[str, Mapping[str, float]], *, config_sha256: str, data: str, subfolder: str = ""
) -> list[Path]:
    """Write `workdir/eval/<step>/<task>.json` for every task; a reader sees an old file or a whole new one.

    data: what was evaluated, such as "emoji/test". A file of the same step and task is replaced.
    subfolder: of that folder, for what must not replace the run's own report.
    """
    folder = Path(workdir) / "eval" / str(step) / subfolder
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for task, metrics in results.items():
        entry = {"task": task, "step": int(step), "config_sha256": config_sha256, "data": data, "metrics": dict(metrics)}
        paths.append(folder / f"{task}.json")
        _write_atomically(paths[-1], json.dumps(entry, indent=1, allow_nan=False) + "\n")
    return paths


def read(workdir: str | os.PathLike[str], step: int, task: str, *, config_sha256: str, subfolder: str = "") -> dict[str, float] | None:
    """The metrics that `write` left for a step and task; None where there are none, those of another config, or a damaged file."""
    try:
        entry = json.loads((Path(workdir) / "eval" / str(step) / subfolder / f"{task}.json").read_text(encoding="utf-8"))
        return entry["metrics"] if entry["config_sha256"] == config_sha256 else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
