"""What `launch.evaluate` does with the checkpoints of a run: one of them, several, or each as it appears."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from bacl_jax import data
from bacl_jax.config import Config, ConfigError, sha256
from bacl_jax.data.source import DataSet
from bacl_jax.errors import CheckpointError
from bacl_jax.eval import curve, suite
from bacl_jax.eval.restore import evaluated_config, open_model
from bacl_jax.eval.tasks import ALL, AUDIT, check_tasks
from bacl_jax.train.checkpoint import EVALUATED, Checkpoints
from bacl_jax.train.hooks import Preemption
from launch.auditing import run_audit
from launch.session import Run


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to evaluate, and how. ConfigError for a task that there is not, and for none.

    split: of the tasks on the run's data; None: the one that the run reports.
    again: also what has results under the same config.
    """

    config: Config
    tasks: Sequence[str]
    split: str | None
    again: bool = False

    def __post_init__(self):
        check_tasks(self.tasks, ALL)


@dataclasses.dataclass
class Evaluation:
    """A model and its data, made ready once for all of its checkpoints, and the results so far."""

    checkpoints: Checkpoints
    asked: Asked
    results: dict[int, dict[str, dict[str, float]]] = dataclasses.field(default_factory=dict)
    _run: Run | None = dataclasses.field(default=None, init=False)

    def run(self, step: int) -> Run:
        """The model without parameters, with the tokenizer of `step`, which is that of all. The data are read where a task needs them."""
        if self._run is None:
            config = evaluated_config(self.checkpoints.workdir, self.asked.config)
            tokenizer, trainer = open_model(self.checkpoints, config, step)
            mesh = " x ".join(f"{name} {size}" for name, size in trainer.mesh.shape.items())
            own = "" if trainer.config.mesh == config.mesh else "; the run's own mesh does not fit the devices here"
            say(f"mesh {mesh} of {trainer.mesh.devices.flat[0].device_kind}{own}")
            self._run = Run(config, functools.partial(_read, config), tokenizer, trainer)
            if set(self.asked.tasks) - set(self._on_files()):
                _ = self._run.dataset  # before the parameters: bad data end the evaluation early
        return self._run

    def _on_files(self) -> list[str]:
        return suite.on_files(self.asked.config, self.asked.tasks)

    def one(self, step: int, tasks: Sequence[str], plots: str | None) -> None:
        """Evaluates a checkpoint on `tasks`. plots: the folder of the pictures in the workdir; None: no pictures."""
        run, workdir = self.run(step), self.checkpoints.workdir
        if AUDIT in tasks:
            run_audit(run, workdir, step)
        if rest := [task for task in tasks if task != AUDIT]:
            params, start = self._params(run, step), time.monotonic()
            if on_files := [task for task in rest if task in self._on_files()]:
                run.benchmarks(workdir, params, step, on_files)
            if on_split := [task for task in rest if task not in on_files]:
                run.report(workdir, params, step, on_split, self.split(run), plots=plots)
            say(f"step {step}: {', '.join(rest)} in {time.monotonic() - start:.1f} s")

    def one_of_several(self, step: int) -> None:
        """The same without pictures, for the tasks that have no results yet. A checkpoint that is gone or damaged is a line."""
        try:
            before = {} if self.asked.again else self.found(step)
            lacking = [task for task in self.asked.tasks if task not in before]
            if before:
                say(f"step {step}: has results of {', '.join(before)}, which are kept (--again makes them anew)")
            if lacking:
                self.one(step, lacking, plots=None)
            self.results[step] = self.found(step)
        except CheckpointError as error:
            say(f"step {step}: skipped, {error}")

    def found(self, step: int) -> dict[str, dict[str, float]]:
        """task -> metrics of the results that were written under this config on these data."""
        run, found = self.run(step), {}
        for task in self.asked.tasks:
            if task in self._on_files():
                subfolder = suite.subfolder_of(run.config, task)
            else:
                subfolder = self.split(run) if self.split(run) != run.reported_split() else ""
            metrics = suite.read(self.checkpoints.workdir, step, task, config_sha256=sha256(run.config), subfolder=subfolder)
            found |= {} if metrics is None else {task: metrics}
        return found

    def split(self, run: Run) -> str:
        """The split asked for, else the reported one. ConfigError where the data have neither."""
        split, data = self.asked.split or run.reported_split(), run.config.data
        if split is None:
            raise ConfigError(f"config.data.path = {data.path!r}: the data has neither a test nor a {run.config.eval.split} split")
        return split

    def summary(self) -> None:
        """The table over all steps, and DIR/plots/checkpoints.png; of another split than the reported one, checkpoints_<split>.png."""
        if not any(self.results.values()):
            return say("no checkpoint was evaluated")
        curve.print_table(self.results)
        run = self.run(max(self.results))
        on_split = set(self.asked.tasks) - set(self._on_files())
        other = f"_{self.split(run)}" if on_split and self.split(run) != run.reported_split() else ""
        print(curve.draw(self.results, self.checkpoints.workdir / "plots" / f"checkpoints{other}.png"))

    def _params(self, run: Run, step: int) -> Any:
        start = time.monotonic()
        _, params = self.checkpoints.restore_params(run.trainer.abstract_params(), step)
        jax.block_until_ready(params)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        say(f"step {step}: {count:,} parameters read in {time.monotonic() - start:.1f} s")
        return params


def evaluate(workdir: str, steps: str | None, asked: Asked) -> None:
    """The checkpoints that `steps` names (see `steps_of`): one with its tables and pictures, of several also the table over the steps."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        wanted = steps_of(steps, checkpoints)
        evaluation = Evaluation(checkpoints, asked)
        if len(wanted) == 1 and steps != "all":
            return evaluation.one(wanted[0], asked.tasks, "plots" if steps is None else f"plots/{wanted[0]}")
        check_several(asked.tasks)
        for step in wanted:
            evaluation.one_of_several(step)
        evaluation.summary()


def follow(workdir: str, asked: Asked, poll_seconds: float) -> None:
    """Every checkpoint as it appears, until DIR/done is there; another process may train, and remove old ones, meanwhile."""
    check_several(asked.tasks)
    seen: set[int] = set()
    told = False
    with Checkpoints(workdir, read_only=True) as checkpoints:
        evaluation = Evaluation(checkpoints, asked)
        while True:
            ended = (Path(workdir) / "done").exists()  # asked before the steps, so that none is missed
            new = [step for step in checkpoints.steps() if step not in seen]
            for step in new:
                seen.add(step)
                evaluation.one_of_several(step)
            if ended:
                break
            if new or not told:
                say(f"waiting for the next checkpoint in {workdir}, or for {workdir}/done")
                told = True
            time.sleep(poll_seconds)
        evaluation.summary()


@contextlib.contextmanager
def until_a_signal(active: bool) -> Iterator[None]:
    """Where `active`, SIGTERM and Ctrl-C end what is inside at once, without an error: result files are whole at any time."""
    if not active:
        yield
        return
    try:
        with Preemption() as signals:
            signals.interrupt()
            yield
    except KeyboardInterrupt:
        say("stopped by a signal; the same command goes on")


def wait_for_run(workdir: str, poll_seconds: float) -> None:
    """Returns when a run has begun in the workdir."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        say(f"waiting for a run: there is no {path} yet")
    while not path.exists():
        time.sleep(poll_seconds)


def steps_of(asked: str | None, checkpoints: Checkpoints) -> list[int]:
    """Steps of checkpoints, ascending: of None the newest readable one, of "all" all, of "best" the one that the run holds for its best,
    of "600,800" these. ConfigError for anything else and where there is no best one; CheckpointError where one is not there."""
    if asked is None:
        return [checkpoints.checked_step(None, EVALUATED)]
    if asked == "all":
        if not checkpoints.steps():
            raise CheckpointError(f"no checkpoint in {checkpoints.directory}")
        return checkpoints.steps()
    if asked == "best":
        position = checkpoints.read_json("position")
        if position["best_step"] is None:
            raise ConfigError("--step=best: the run was not evaluated while it trained, or keeps no best (config.train.keep_best)")
        say(f"best: step {position['best_step']}, {position['best_metric']} {position['best_value']:.1f}")
        return [checkpoints.checked_step(position["best_step"], EVALUATED)]
    if not all(one.strip().isdecimal() for one in asked.split(",")):
        raise ConfigError(f"--step={asked}: must be a step, steps with commas between them, all or best; there are {checkpoints.steps()}")
    return [checkpoints.checked_step(step, EVALUATED) for step in sorted({int(one) for one in asked.split(",")})]


def check_several(tasks: Sequence[str]) -> None:
    """ConfigError for a task that is not about one checkpoint."""
    if AUDIT in tasks:
        raise ConfigError("--tasks=audit averages over checkpoints itself (config.eval.audit.steps): give it one --step")


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def _read(config: Config) -> DataSet:
    start = time.monotonic()
    dataset = data.load(config.data)
    say(f"data read in {time.monotonic() - start:.1f} s: {dataset.description}")
    return dataset
