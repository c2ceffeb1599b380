"""Evaluates checkpoints of a run zero-shot, or looks through its data with one; changes nothing but DIR/eval and DIR/plots.

    python -m launch.evaluate --workdir=runs/bacl
    python -m launch.evaluate --workdir=runs/bacl --step=600 --tasks=retrieval,halftrue --config.eval.split=validation
    python -m launch.evaluate --workdir=runs/bacl --tasks=winoground --config.eval.winoground.path=winoground/examples.jsonl

--workdir  folder of a run of launch.train; its config.json and a checkpoint's parameters and tokenizer are used, on any devices.
--step     the checkpoint; the newest readable one if left out. Several: 400,600 or all. best: that of train.keep_best. Several get a
           table and plots/checkpoints.png; what has results under the same config is kept, and made anew with --again.
--follow   each checkpoint as it appears, until the run is done or a signal comes; looks every --poll_seconds (10).
--tasks    of retrieval, halftrue, localization, robustness, fusion, audit; those of the run's eval.tasks if left out. On data of their
           own, which eval.<task> names (docs/evaluation.md): classification, probe, sugarcrepe, sugarcrepe_pp, winoground, aro, valse,
           retrieval.
--config.<field>=<value> changes a field that may differ from the training's: data.path, eval.*, mesh.*. The split is
eval.split if it is given here, else eval.report, by default test. audit ranks pairs by how likely they are wrong (docs/data.md).

Writes DIR/eval/<step>/<task>.json. Exit codes: 0 done, 2 bad usage or config, else a crash.
"""

from typing import Any, cast

from absl import flags
from ml_collections import config_flags

from bacl_jax.config import ConfigError, default_config_dict, from_config_dict, to_dict
from bacl_jax.train.workdir import read_config
from launch import command, early

CONFIG = config_flags.DEFINE_config_dict("config", default_config_dict())
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
STEP = flags.DEFINE_string("step", None, "Step of the checkpoint, several, all or best; the newest if left out.")
TASKS = flags.DEFINE_list("tasks", None, "Tasks, separated by commas.")
AGAIN = flags.DEFINE_bool("again", False, "Whether what has results is evaluated anew.")
FOLLOW = flags.DEFINE_bool("follow", False, "Whether to wait for checkpoints.")
POLL = flags.DEFINE_float("poll_seconds", 10.0, "Time between two looks for a new checkpoint.", lower_bound=0.1)


def main() -> None:
    if WORKDIR.value is None:
        raise ConfigError("--workdir must be given, as in --workdir=runs/bacl; --help tells more")
    if FOLLOW.value and STEP.value is not None:
        raise ConfigError(f"--step={STEP.value}: --follow evaluates every step; leave one of them out")
    early.check_evaluation(WORKDIR.value, TASKS.value, exists=not FOLLOW.value)
    from launch import checkpoints  # and with it JAX, which takes seconds: what is wrong is said before

    with checkpoints.until_a_signal(FOLLOW.value):
        if FOLLOW.value:
            checkpoints.wait_for_run(WORKDIR.value, POLL.value)
        overrides = cast(Any, flags.FLAGS["config"]).override_values
        config = from_config_dict(command.overridden(to_dict(read_config(WORKDIR.value)), overrides))
        split = config.eval.split if "eval.split" in overrides else None
        asked = checkpoints.Asked(config, TASKS.value or config.eval.tasks, split, AGAIN.value)
        if FOLLOW.value:
            checkpoints.follow(WORKDIR.value, asked, POLL.value)
        else:
            checkpoints.evaluate(WORKDIR.value, STEP.value, asked)


if __name__ == "__main__":
    command.run(main, __doc__)
