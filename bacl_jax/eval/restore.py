"""From a workdir back to everything that evaluation needs, on any mesh. Of a checkpoint it reads the parameters and the tokenizer."""

import dataclasses
import functools
import os
from typing import Any

from bacl_jax import data
from bacl_jax.config import Config, ConfigError, MeshConfig, check_resumable
from bacl_jax.data.source import DataSet
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.mesh import make_mesh
from bacl_jax.train.checkpoint import EVALUATED, Checkpoints
from bacl_jax.train.step import Trainer, build
from bacl_jax.train.workdir import read_config


@dataclasses.dataclass(frozen=True)
class Restored:
    """A trained model. params: for evaluation (averaged where the run keeps an average), on the mesh of this machine."""

    config: Config
    tokenizer: Tokenizer
    trainer: Trainer
    params: Any
    step: int

    @functools.cached_property
    def dataset(self) -> DataSet:
        """The data of the config, read when they are first asked for: a model alone needs none."""
        return data.load(self.config.data)


def restore(workdir: str | os.PathLike[str], step: int | None = None, config: Config | None = None) -> Restored:
    """Read a run's config, tokenizer and parameters at `step` (None: the newest checkpoint).

    config: the run's own with other values in changeable fields (data.path, mesh.*, eval.*); None: as it was trained.
    Nothing in the workdir is changed. Raises ConfigError when `workdir` is none, when `config` differs in more than that
    or when the mesh does not fit this machine; CheckpointError when no readable checkpoint is there.
    """
    config = evaluated_config(workdir, config)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.checked_step(step, EVALUATED)
        tokenizer, trainer = open_model(checkpoints, config, step)
        step, params = checkpoints.restore_params(trainer.abstract_params(), step)
    return Restored(config, tokenizer, trainer, params, step)


def evaluated_config(workdir: str | os.PathLike[str], config: Config | None = None) -> Config:
    """`config`, after a check that the run may be evaluated under it; None: the run's own. ConfigError as in `restore`."""
    stored = read_config(workdir)
    if config is not None:
        check_resumable(stored, config)
    return config or stored


def open_model(checkpoints: Checkpoints, config: Config, step: int) -> tuple[Tokenizer, Trainer]:
    """The tokenizer of a checkpoint, and the functions of the model on the mesh of `mesh_here`; compiles nothing yet."""
    tokenizer = Tokenizer.from_json(checkpoints.read_json("tokenizer", step))
    trained = read_config(checkpoints.workdir).mesh
    config = dataclasses.replace(config, mesh=mesh_here(config.mesh, trained))
    return tokenizer, build(config, tokenizer.vocab_size, make_mesh(config.mesh), training=False)


def mesh_here(asked: MeshConfig, trained: MeshConfig) -> MeshConfig:
    """`asked` where it fits the devices of this process. ConfigError where it does not and was asked for; where it only is the mesh that
    the run was trained on, all devices along data, each with whole parameters."""
    try:
        make_mesh(asked)
    except ConfigError:
        if asked != trained:
            raise
        return dataclasses.replace(asked, data=-1, fsdp=1, tensor=1)
    return asked
