"""Weights & Biases and MLflow as trackers, and what a tracker is given. Their packages are imported in a run that names them."""

import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from bacl_jax.config import Config, flatten

OPEN_SECONDS = 30  # that W&B has to begin a run
FLUSH_SECONDS = 1.0  # after which W&B has written to its file what it was given
MLFLOW = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # Behind has patience of its own
AT_ONCE = 100  # parameters that MLflow takes in one request


@dataclasses.dataclass(frozen=True)
class Look:
    """What an evaluation has beside its results, for trackers alone. histograms: values to be counted."""

    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pictures: Mapping[str, UInt8[np.ndarray, "H W 3"]] = dataclasses.field(default_factory=dict)
    histograms: Mapping[str, Float[np.ndarray, " n"]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Record(Look):
    """All that is known of a step. seconds: since 1970."""

    step: int = 0
    seconds: float = 0.0


@runtime_checkable
class Service(Protocol):
    """A tracker that may not answer: any call may take long or raise anything.

    settles: seconds after which what `write` took outlives this process.
    """

    settles: float

    def open(self, run: str | None, remember: Callable[[str], None]) -> int | None:
        """Goes on in a run, or begins one (None) and has its id remembered at once. The last step that the run has; None where unknown."""
        ...

    def write(self, record: Record) -> None: ...

    def close(self, step: int) -> None:
        """The process ends; `step`: the last one that the service was given."""
        ...


class WeightsAndBiases:
    """Its files are in DIR/wandb, and those of WANDB_MODE=offline stay there for `wandb sync`; all of a run's starts have one id."""

    settles = 3 * FLUSH_SECONDS

    def __init__(self, config: Config, workdir: Path):
        self._config, self._workdir = config, workdir
        self._wandb: Any = None
        self._run: Any = None

    def open(self, run: str | None, remember: Callable[[str], None]) -> int | None:
        self._wandb = importlib.import_module("wandb")
        watch = self._config.watch
        settings = self._wandb.Settings(
            silent=True, console="off", init_timeout=OPEN_SECONDS, x_transaction_log_flush_interval=FLUSH_SECONDS
        )
        name, where = watch.name or self._workdir.name, str(self._workdir)
        self._run = self._wandb.init(project=watch.project, name=name, id=run, resume="allow", dir=where, settings=settings)
        remember(self._run.id)
        self._run.config.update(flatten(self._config), allow_val_change=True)
        return self._run.step - 1 if self._run.resumed else None

    def write(self, record: Record) -> None:
        pictures = {name: self._wandb.Image(picture) for name, picture in record.pictures.items()}
        histograms = {name: self._wandb.Histogram(values) for name, values in record.histograms.items()}
        self._run.log({**record.numbers, **pictures, **histograms}, step=record.step, commit=True)  # else kept until the next step

    def close(self, step: int) -> None:
        done = step >= self._config.train.steps
        if not done:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if done else 1)


class MLflow:
    """A run on the server of `watch.mlflow_uri`. It has no histograms: their quartiles are metrics."""

    settles = 0.0

    def __init__(self, config: Config, workdir: Path):
        self._config, self._workdir = config, workdir
        self._client: Any = None
        self._entities: Any = None
        self._id = ""

    def open(self, run: str | None, remember: Callable[[str], None]) -> int:
        for name, value in MLFLOW.items():
            os.environ.setdefault(name, value)
        self._entities = importlib.import_module("mlflow.entities")
        self._client = importlib.import_module("mlflow").MlflowClient(mlflow_uri(self._config))
        watch = self._config.watch
        if run is None:
            found = self._client.get_experiment_by_name(watch.project)
            experiment = found.experiment_id if found else self._client.create_experiment(watch.project)
            run = str(self._client.create_run(experiment, run_name=watch.name or self._workdir.name).info.run_id)
            remember(run)
        self._id = run
        there = self._client.get_run(run).data
        if not there.params:  # of a run that goes on they stay as they were: MLflow lets none change
            params = [self._entities.Param(_name(name), str(value)) for name, value in flatten(self._config).items()]
            for start in range(0, len(params), AT_ONCE):
                self._client.log_batch(run, params=params[start : start + AT_ONCE])
        self._client.update_run(run, status="RUNNING")
        return int(there.metrics.get("step", 0))

    def write(self, record: Record) -> None:
        quartiles = {f"{name}/p{p}": float(np.percentile(values, p)) for name, values in record.histograms.items() for p in (25, 50, 75)}
        for name, picture in record.pictures.items():
            self._client.log_image(self._id, Image.fromarray(picture), key=_name(name).replace("/", "_"), step=record.step)
        numbers = {**record.numbers, **quartiles, "step": float(record.step)}  # `step` tells a later process where the run is
        metric, milliseconds = self._entities.Metric, int(1000 * record.seconds)
        self._client.log_batch(self._id, metrics=[metric(_name(name), value, milliseconds, record.step) for name, value in numbers.items()])

    def close(self, step: int) -> None:
        self._client.set_terminated(self._id, "FINISHED" if step >= self._config.train.steps else "KILLED")


def _name(name: str) -> str:
    """As MLflow allows it: R@1 is R_at_1, and a place in a list has no brackets."""
    return name.replace("@", "_at_").replace("[", ".").replace("]", "")


def mlflow_uri(config: Config) -> str | None:
    """The server of a run: the config's, else that of the environment."""
    return config.watch.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
