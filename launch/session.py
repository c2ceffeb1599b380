"""The parts of one run put together: data, tokenizer, trainer, evaluation. The doors use it, and so may a notebook."""

import dataclasses
import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax

from bacl_jax import data, schedules
from bacl_jax.config import Config, sha256
from bacl_jax.data.order import PartnerLists
from bacl_jax.data.source import DataSet
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.eval import suite
from bacl_jax.mesh import make_mesh
from bacl_jax.train.checkpoint import Checkpoints
from bacl_jax.train.loop import Loop
from bacl_jax.train.state import TrainState
from bacl_jax.train.step import Trainer, build


@dataclasses.dataclass(frozen=True)
class Run:
    """A config with everything that it names, ready to train or to evaluate."""

    config: Config
    dataset: DataSet
    tokenizer: Tokenizer
    trainer: Trainer

    def loop(self, checkpoints: Checkpoints) -> Loop:
        """The training loop over this run's data, evaluated on eval.split where the data has it."""
        config, train = self.config, self.config.train
        evaluated = config.eval.split in self.dataset.splits and len(config.eval.tasks) > 0
        if not evaluated:
            print(f"not evaluated while training: the data has the splits {tuple(self.dataset.splits)}, eval.tasks = {config.eval.tasks}")
        return Loop(
            config=config,
            trainer=self.trainer,
            batches=self.batches,
            rows=len(self.dataset.train),
            checkpoints=checkpoints,
            tokenizer=tokenizer_json(self.tokenizer),
            evaluate=(lambda state, step: flat(config.eval.split, self.evaluate(state, config.eval.split))) if evaluated else None,
            headline=f"{config.eval.split}/retrieval/{train.keep_best or 'i2t_R@1'}" if evaluated else None,
        )

    def batches(self, start_step: int, partners: PartnerLists) -> Any:
        """(step, host batch) from `start_step` on."""
        config = self.config
        share = functools.partial(schedules.partner_share, steps=config.train.steps, config=config.objective.bns)
        shard = (jax.process_index(), jax.process_count())
        draws = config.objective.bns.enabled and config.objective.bns.partner_share > 0
        return data.batches(
            self.dataset,
            self.tokenizer,
            config,
            start_step=start_step,
            partners=partners if draws else None,
            partner_share=share,
            shard=shard,
        )

    def evaluate(self, state: TrainState, split: str) -> dict[str, dict[str, float]]:
        """Task -> metric -> number on one split."""
        params = self.trainer.eval_params(state)
        return suite.evaluate(self.trainer, params, self.dataset, self.tokenizer, self.config, self.config.eval.tasks, split)

    def report(self, workdir: str | os.PathLike[str], state: TrainState, step: int) -> None:
        """Evaluates on the test split where there is one, writes the results, prints the table and the paths of the plots."""
        split = next((name for name in ("test", self.config.eval.split) if name in self.dataset.splits), None)
        if split is None or not self.config.eval.tasks:
            return
        results = self.evaluate(state, split)
        suite.write(workdir, step, results, config_sha256=sha256(self.config), data=f"{self.config.data.kind}/{split}")
        print(json.dumps(results, indent=1))


def open_run(config: Config, checkpoints: Checkpoints) -> Run:
    """Reads the data, takes the tokenizer from the newest checkpoint or trains it, builds the trainer. Compiles nothing yet."""
    mesh = make_mesh(config.mesh)
    dataset = data.load(config.data)
    if checkpoints.steps():
        tokenizer = tokenizer_from_json(checkpoints.read_json("tokenizer"))
    else:
        tokenizer = Tokenizer.train([dataset.captions[i] for i in dataset.train_caption], config.data)
    return Run(config, dataset, tokenizer, build(config, tokenizer.vocab_size, mesh))


def flat(split: str, results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Names as in metrics.jsonl: <split>/<task>/<metric>."""
    return {f"{split}/{task}/{name}": value for task, metrics in results.items() for name, value in metrics.items()}


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "tokenizer.json")
        return json.loads((Path(folder) / "tokenizer.json").read_text())


def tokenizer_from_json(stored: dict[str, Any]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(stored))
        return Tokenizer.load(Path(folder) / "tokenizer.json")
