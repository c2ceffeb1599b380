"""From a workdir back to everything that evaluation needs."""

import dataclasses
import os
from typing import Any

from bacl_jax import data
from bacl_jax.config import Config, check_resumable
from bacl_jax.data.source import DataSet
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.mesh import make_mesh
from bacl_jax.train.checkpoint import Checkpoints, read_config
from bacl_jax.train.step import Trainer, build


@dataclasses.dataclass(frozen=True)
class Restored:
    """A trained model with its data. params: for evaluation (averaged where the run keeps an average), on the mesh of this machine."""

    config: Config
    tokenizer: Tokenizer
    dataset: DataSet
    trainer: Trainer
    params: Any
    step: int


def restore(workdir: str | os.PathLike[str], step: int | None = None, config: Config | None = None) -> Restored:
    """Read a run's config, tokenizer and parameters at `step` (None: the newest checkpoint), and load its data.

    config: the run's own with other values in changeable fields (data.path, mesh.*, eval.*); None: as it was trained.
    Nothing in the workdir is changed. Raises ConfigError when `workdir` is none, when `config` differs in more than that
    or when the mesh does not fit this machine; CheckpointError when no readable checkpoint is there.
    """
    stored = read_config(workdir)
    if config is not None:
        check_resumable(stored, config)
    config = config or stored
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.checked_step(step)
        tokenizer = Tokenizer.from_json(checkpoints.read_json("tokenizer", step))
        trainer = build(config, tokenizer.vocab_size, make_mesh(config.mesh))
        step, params = checkpoints.restore_params(trainer.abstract_state().params, step)
    return Restored(config, tokenizer, data.load(config.data), trainer, params, step)
