"""The warning that a run waits for its data, which names the stage that takes the readers' time and what to change."""

import logging
import os

from bacl_jax.config import DataConfig
from bacl_jax.data.stages import Stage, Stages
from bacl_jax.data.storage import is_remote

log = logging.getLogger("bacl_jax")

SHARE = 0.1  # of the time of its steps, from which on a run waits too long
WINDOW = 60.0  # seconds of steps that are judged together
QUIET = 600.0  # seconds of steps between two warnings
_CALLED: dict[Stage, str] = {"reading": "storage", "decoding": "decoding", "tokenising": "tokenising"}


class Bottleneck:
    """Takes the times of each step. The first step is passed over: it compiles, and its batch is the first to be read."""

    def __init__(self, config: DataConfig, stages: Stages):
        self._config, self._stages = config, stages
        self._first: int | None = None  # step of the window; None: nothing was taken yet
        self._waited = self._stepped = 0.0
        self._before = stages.seconds()
        self._silent = 0.0  # seconds for which nothing more is said

    def took(self, step: int, *, waited: float, stepped: float) -> None:
        """waited: seconds until the batch was there; stepped: of the step itself. Logs a warning when it is due."""
        if self._first is None:
            self._start(step + 1)
            return
        self._waited, self._stepped, self._silent = self._waited + waited, self._stepped + stepped, self._silent - waited - stepped
        if self._waited + self._stepped < WINDOW:
            return
        if self._silent <= 0 and self._waited > SHARE * (self._waited + self._stepped):
            log.warning("%s", self._message(step))
            self._silent = QUIET
        self._start(step + 1)

    def _start(self, step: int) -> None:
        self._first, self._waited, self._stepped, self._before = step, 0.0, 0.0, self._stages.seconds()

    def _message(self, step: int) -> str:
        total = self._waited + self._stepped
        found = (
            f"steps {self._first} to {step} waited for data {self._waited / total:.0%} of their time ({self._waited:.1f} of {total:.1f} s)"
        )
        spent: dict[Stage, float] = {stage: seconds - self._before[stage] for stage, seconds in self._stages.seconds().items()}
        readers = sum(spent.values())
        if not readers:
            return f"{found}: the readers did nothing meanwhile"
        worst = max(spent, key=lambda stage: spent[stage])
        shares = ", ".join(f"{seconds / readers:.0%} {stage}" for stage, seconds in spent.items())
        return f"{found}. {_CALLED[worst].capitalize()} is the bottleneck: the readers spent {shares}. {self._remedy(worst)}"

    def _remedy(self, stage: Stage) -> str:
        data, cores = self._config, len(os.sched_getaffinity(0))
        more = f"raise data.threads = {data.threads}"
        if stage == "reading":
            if data.path is not None and is_remote(data.path):
                block = ", start anew with data.shuffle=block" if data.shuffle == "global" else ""
                return f"Copy the files to a local disk{block}, or {more}: more requests then run at once"
            convert = ", convert them with launch.index --convert=array_record" if data.kind in ("webdataset", "parquet") else ""
            return f"Move the files to a faster disk{convert}, or {more}"
        if data.threads < cores:
            return f"{more.capitalize()}: there are {cores} cores"
        if stage == "decoding":
            return f"All {cores} cores are in use: store smaller pictures ({2 * data.image_size} pixels are enough), or take more hosts"
        return f"All {cores} cores are in use: take more hosts"
