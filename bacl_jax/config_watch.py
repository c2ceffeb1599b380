"""How a run is watched: trackers, what they get to see at evaluations, and traces of steps. No field changes a number of the run."""

import dataclasses
from typing import Literal

from bacl_jax.settings import NonNegative, Positive, changeable

Tracker = Literal["tensorboard", "wandb", "mlflow"]


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    trackers: tuple[Tracker, ...] = changeable(("tensorboard",))  # what the metrics go to, beside metrics.jsonl
    project: str = changeable("bacl_jax")  # W&B: project; MLflow: experiment
    name: str | None = changeable(None)  # of the run, in W&B and MLflow; None: that of the workdir
    mlflow_uri: str | None = changeable(None)  # MLflow: server, as in http://127.0.0.1:5000; None: MLFLOW_TRACKING_URI
    pictures: NonNegative = changeable(4)  # half-true pairs whose attention is drawn at an evaluation, with CLA; 0: none
    histograms: bool = changeable(True)  # similarities and boundary scores of the evaluation pairs, and norms of the parameters
    trace_from: Positive | None = changeable(None)  # step from which on steps are traced; None: none, but for SIGUSR1
    trace_steps: Positive = changeable(5)  # steps of a trace
