"""What a run begins with: rows, tokenizer, weights. And what is made of these alone: stored features, a workdir of published weights."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax

from bacl_jax import data, interop, paths
from bacl_jax.config import Config, ConfigError
from bacl_jax.data.features import Index
from bacl_jax.data.source import DataSet
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.data.unpaired import UnpairedDataSet
from bacl_jax.mesh import make_mesh
from bacl_jax.rules import check_pictures
from bacl_jax.train import precompute as stored_features
from bacl_jax.train.checkpoint import Checkpoints, Position
from bacl_jax.train.processes import agree
from bacl_jax.train.state import TrainState
from bacl_jax.train.step import Trainer, build
from bacl_jax.train.workdir import claim_workdir

FRAMES = "towers/video/frames/"  # where the image tower of a video tower lies
ROWS = "rows.json"  # in the workdir: the number of training rows that the run was begun with


def read_data(config: Config) -> DataSet:
    """The data of a config, when all processes have read them; ConfigError where no row is for training."""
    dataset = data.load(config.data)
    if not len(dataset.train):
        raise ConfigError(f"config.data.path = {config.data.path!r}: no row is for training ({dataset.description})")
    if config.objective.unpaired.enabled and isinstance(dataset, UnpairedDataSet) and not dataset.pictures:
        found = f"every picture of {dataset.description} has a caption"
        raise ConfigError(f"config.objective.unpaired.enabled = True: {found}, so none is sought; set it to False")
    agree("the data are read", {"the number of rows": rows_of(dataset), "the held-out captions": _digest(dataset.captions)})
    return dataset


def rows_of(dataset: DataSet) -> list[int]:
    """Training rows of each part: what the order of the rows depends on."""
    return [part.rows for part in dataset.parts()]


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def check_rows(workdir: str | os.PathLike[str], dataset: DataSet) -> None:
    """ConfigError where the workdir was begun with another number of rows: they would come in another order, some twice."""
    path = Path(workdir) / ROWS
    try:
        begun = json.loads(path.read_text())["training rows"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not what a run wrote; delete it, if the data are those that the run was begun with") from error
    if begun != rows_of(dataset):
        raise ConfigError(
            f"{workdir} was begun with {begun} training rows in its sources, and now there are {rows_of(dataset)}: the rows would come in "
            f"another order. Restore the files, or take another --workdir; to go on all the same, delete {path}"
        )


def keep_rows(workdir: str | os.PathLike[str], dataset: DataSet) -> None:
    """Writes what `check_rows` reads, where it is not there."""
    path = Path(workdir) / ROWS
    if jax.process_index() == 0 and not path.exists():
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"training rows": rows_of(dataset)}) + "\n")
        unfinished.replace(path)


def precompute(config: Config, out: Path, dtype: str) -> Index:
    """Stores what the frozen towers of a run make of its training rows, with the weights that it begins with, in the folder `out`."""
    if config.data.unpaired_share:
        raise ConfigError(f"config.data.unpaired_share = {config.data.unpaired_share}: must be 0: features are stored of complete pairs")
    check_pictures(config, "stored features", alone=True)
    dataset = read_data(config)
    tokenizer = _new_tokenizer(config, dataset)
    trainer = build(config, tokenizer.vocab_size, make_mesh(config.mesh))
    params = trainer.eval_params(begin(config, trainer, trainer.init(config.seed)))
    return stored_features.write(trainer, params, dataset, tokenizer, out, dtype=dtype)


def tokenizer_of(config: Config, dataset: DataSet, checkpoints: Checkpoints) -> Tokenizer:
    """A checkpoint's own tokenizer wins: a vocabulary file that changed meanwhile, or is gone, is not looked at."""
    if checkpoints.steps():
        return Tokenizer.from_json(checkpoints.read_json("tokenizer"))
    return _new_tokenizer(config, dataset)


def _new_tokenizer(config: Config, dataset: DataSet) -> Tokenizer:
    """The tokenizer that a run of this config begins with."""
    if config.data.tokenizer == "file":
        tokenizer, origin = Tokenizer.read(config.data), f"read from {config.data.tokenizer_path}"
    else:
        captions = dataset.training_captions()
        tokenizer, origin = Tokenizer.train(captions, config.data), f"trained on {len(captions):,} captions"
    agree("the tokenizer is there", {"the tokenizer's digest": _digest(tokenizer.to_json())})
    print(f"tokenizer {config.data.tokenizer}: {tokenizer.vocab_size:,} tokens, {origin}")
    return tokenizer


def adopt(config: Config, workdir: str) -> None:
    """A workdir with a checkpoint of step 0, whose towers have the published weights that the config names. No data are read.

    ConfigError where the workdir has a checkpoint, or the config names no vocabulary file.
    """
    if config.data.tokenizer != "file":
        raise ConfigError(
            f"config.data.tokenizer = {config.data.tokenizer!r}: the published tokenizer is needed; set "
            "--config.data.tokenizer=file --config.data.tokenizer_path=FILE --config.data.vocab_size=TOKENS"
        )
    with Checkpoints(workdir) as checkpoints:
        if steps := checkpoints.steps():
            raise ConfigError(f"--workdir={workdir}: has checkpoints of steps {', '.join(map(str, steps))}; take another one")
        tokenizer = Tokenizer.read(config.data)
        trainer = build(config, tokenizer.vocab_size, make_mesh(config.mesh), training=False)
        state = begin(config, trainer, trainer.init(config.seed))
        claim_workdir(workdir, config)
        checkpoints.save(state, Position(), [], config, tokenizer.to_json())
        checkpoints.wait()


def begin(config: Config, trainer: Trainer, state: TrainState) -> TrainState:
    """A fresh state with the published weights that the config names, if any; without an image tower of its own, a clip's has them."""
    of_frames = "image" not in config.data.anchors
    shapes = {path.replace(FRAMES, "towers/image/") if of_frames else path: leaf.shape for path, leaf in paths.named(state.params)}
    weights = interop.weights(config, shapes)
    if of_frames:
        weights = {path.replace("towers/image/", FRAMES): array for path, array in weights.items()}
    if weights:
        count = sum(array.size for array in weights.values())
        places = {tower.pretrained: None for tower in (config.model.image, config.model.text) if tower.pretrained}
        print(f"{count:,} parameters begin as those of {', '.join(places)}")
    return trainer.with_weights(state, weights) if weights else state
