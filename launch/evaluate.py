"""Evaluates a checkpoint of a run zero-shot, or looks through its data with it; changes nothing but DIR/eval and DIR/plots.

    python -m launch.evaluate --workdir=runs/bacl
    python -m launch.evaluate --workdir=runs/bacl --step=600 --tasks=retrieval,halftrue --config.eval.split=validation
    python -m launch.evaluate --workdir=runs/bacl --tasks=winoground --config.eval.winoground.path=winoground/examples.jsonl

--workdir  folder of a run of launch.train; its config.json, data and tokenizer are used.
--step     the checkpoint; the newest readable one if left out.
--tasks    of retrieval, halftrue, localization, robustness, audit; those of the run's eval.tasks if left out. On data of their own, which
           eval.<task> names (docs/evaluation.md): classification, probe, sugarcrepe, sugarcrepe_pp, winoground, aro, valse, retrieval.
--config.<field>=<value> changes a field that may differ from the training's: data.path, eval.*, mesh.*. The split is
eval.split if it is given here, else eval.report, by default test.

audit ranks the training pairs, or those of eval.audit.split, by how likely they are wrong; docs/data.md tells more.

Writes DIR/eval/<step>/<task>.json. Exit codes: 0 done, 2 bad usage or config, else a crash.
"""

from typing import Any, cast

from absl import flags
from ml_collections import config_flags

from bacl_jax.config import ConfigError, default_config_dict, from_config_dict, to_dict
from bacl_jax.eval import suite
from bacl_jax.eval.restore import restore
from bacl_jax.train.checkpoint import read_config
from launch import command
from launch.session import Run

AUDIT = "audit"  # looks at pairs, not at a split's images and captions
CONFIG = config_flags.DEFINE_config_dict("config", default_config_dict())
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest if left out.")
TASKS = flags.DEFINE_list("tasks", None, "Tasks, separated by commas.")


def main() -> None:
    if WORKDIR.value is None:
        raise ConfigError("--workdir must be given, as in --workdir=runs/bacl; --help tells more")
    overrides = cast(Any, flags.FLAGS["config"]).override_values
    config = from_config_dict(command.overridden(to_dict(read_config(WORKDIR.value)), overrides))
    tasks = TASKS.value or config.eval.tasks
    suite.check_tasks(tasks, tuple(dict.fromkeys((*suite.TASKS, AUDIT, *suite.BENCHMARKS))))
    found = restore(WORKDIR.value, STEP.value, config)
    run = Run(found.config, found.dataset, found.tokenizer, found.trainer)
    if AUDIT in tasks:
        run.audit(WORKDIR.value, found.step)
    files = suite.on_files(config, tasks)
    run.benchmarks(WORKDIR.value, found.params, found.step, files)
    if not (tasks := [task for task in tasks if task in suite.TASKS and task not in files]):
        return
    split = config.eval.split if "eval.split" in overrides else run.reported_split()
    if split is None:
        raise ConfigError(f"config.data.path = {config.data.path!r}: the data has neither a test nor a {config.eval.split} split")
    run.report(WORKDIR.value, found.params, found.step, tasks, split, plots="plots" if STEP.value is None else f"plots/{found.step}")


if __name__ == "__main__":
    command.run(main, __doc__)
