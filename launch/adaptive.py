"""A search that learns from its points: Optuna asks the sweep file for one after another. DIR/optuna.db keeps it, so that it goes on."""

import contextlib
import functools
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bacl_jax.config import ConfigError
from launch.point_runs import Ended, Planned, Records
from launch.points import Point, config_of, result
from launch.sweeps import METRICS, SPLIT, Sweep, check_workdirs

STUDY = "sweep"  # its name in the storage


class Study:
    """trials: how many points there shall be in all, with those of before.

    The sampler is Optuna's TPE and the pruner its median rule, or what the file's `sampler(seed)` and `pruner()` give. What they maximise
    is the sweep's metric; intermediate values are those that the runs log on validation. ConfigError where Optuna is not installed, or
    where `suggest` makes no config.
    """

    def __init__(self, sweep: Sweep, folder: Path, trials: int):
        self._sweep, self._folder, self._trials = sweep, folder, trials
        try:
            self._optuna: Any = importlib.import_module("optuna")
        except ImportError as error:
            raise ConfigError(
                f"--sweep={sweep.file.path}: suggest() needs Optuna ({error}); pip install -r requirements-optuna.txt"
            ) from error
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._pruner = sweep.file.call("pruner") if sweep.file.pruner else self._optuna.pruners.MedianPruner()
        tried = self._optuna.create_study(sampler=self._optuna.samplers.RandomSampler(seed=0))
        check_workdirs([self._point(tried.ask())], folder)

    def plan(self) -> Iterator[Planned]:
        """The points that have ended before, those that were cut off or failed, and then new ones, each made when it is asked for."""
        states, metric = self._optuna.trial.TrialState, self._sweep.metric
        with self._readable():
            study = self._optuna.create_study(
                storage=self._storage, study_name=STUDY, direction="maximize", pruner=self._pruner, load_if_exists=True
            )
        if (before := study.user_attrs.get("metric", metric)) != metric:
            raise ConfigError(
                f"--metric={metric}: the trials in {self._folder} are compared by {before}; set that, or take another --workdir"
            )
        study.set_user_attr("metric", metric)
        study.sampler = self._sampler(len(study.trials))  # a seed for each start: else what was drawn before would be drawn again
        ended = study.get_trials(states=(states.COMPLETE, states.PRUNED))
        again = self._cut_off(study)
        for trial in ended:
            yield Planned(self._sweep.point(json.loads(trial.user_attrs["override"]), f"trial {trial.number}"))
        open_trials: dict[str, list[Any]] = {}
        for _ in range(self._trials - len(ended)):
            if again:
                study.enqueue_trial(again.pop(0))
            trial = study.ask()
            point = self._point(trial)
            trials = open_trials.setdefault(point.name, [])
            trials.append(trial)
            if len(trials) == 1:  # else it runs already, and what it gives counts for both
                told = functools.partial(self._told, study, open_trials)
                yield Planned(point, functools.partial(self._watch, trial, config_of(point).train.steps, set()), told)

    def ended(self) -> list[Point]:
        """The points of the trials that are in the storage, without a new one."""
        path = self._folder / "optuna.db"
        if not path.exists():
            return []
        with self._readable():
            trials = self._optuna.load_study(storage=self._storage, study_name=STUDY).trials
        overrides = {trial.user_attrs["override"]: trial.number for trial in trials if "override" in trial.user_attrs}
        return [self._sweep.point(json.loads(text), f"trial {number}") for text, number in overrides.items()]

    @property
    def _storage(self) -> str:
        return f"sqlite:///{self._folder / 'optuna.db'}"

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """ConfigError where the storage cannot be read, whatever its library raises."""
        try:
            yield
        except Exception as error:
            what = str(error).splitlines()[0]
            raise ConfigError(f"--workdir={self._folder}: its optuna.db holds no search ({what}); move it away, or take another") from error

    def _sampler(self, seed: int) -> Any:
        return self._sweep.file.call("sampler", seed) if self._sweep.file.sampler else self._optuna.samplers.TPESampler(seed=seed)

    def _point(self, trial: Any) -> Point:
        override = self._sweep.file.call("suggest", trial)
        point = self._sweep.point(override, f"trial {trial.number}")
        trial.set_user_attr("override", json.dumps(dict(override)))
        return point

    def _cut_off(self, study: Any) -> list[dict[str, Any]]:
        """Parameters of the trials that have no result: those that ran when the sweep was killed, and those that failed."""
        states = self._optuna.trial.TrialState
        for trial in study.get_trials(states=(states.RUNNING,)):
            study.tell(trial.number, state=states.FAIL)
        known = [trial.params for trial in study.get_trials(states=(states.COMPLETE, states.PRUNED))]
        found: list[dict[str, Any]] = []
        for trial in study.get_trials(states=(states.FAIL,)):
            if trial.params and trial.params not in [*known, *found]:
                found.append(trial.params)
        return found

    def _watch(self, trial: Any, steps: int, reported: set[int], records: Records) -> bool:
        """Reports the evaluations among new lines of a log; whether the run is to be pruned. The last step is the report's."""
        name = evaluation(self._sweep.metric)
        for record in records:
            if record.get(name) is not None and record["step"] not in {*reported, steps}:
                reported.add(record["step"])
                trial.report(record[name], record["step"])
        return bool(reported) and trial.should_prune()

    def _told(self, study: Any, open_trials: dict[str, list[Any]], ended: Ended) -> None:
        states, trials = self._optuna.trial.TrialState, open_trials.pop(ended.point.name)
        if ended.status == "stopped":
            return
        row = result(ended.point, self._folder / ended.point.name) if ended.status == "done" else None
        value = None if row is None else row.get(self._sweep.metric)
        for trial in trials:
            if value is not None:
                study.tell(trial, value)
            else:
                study.tell(trial, state=states.PRUNED if ended.status == "pruned" else states.FAIL)


def evaluation(metric: str) -> str:
    """The name under which runs log a metric while they train."""
    return f"{SPLIT['eval.split']}/{METRICS[metric]}/{metric}"
