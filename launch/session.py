"""The parts of one run put together: data, tokenizer, trainer, loop, report. The doors use it, and so may a notebook."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bacl_jax import data, partition, paths, schedules
from bacl_jax.config import Config, sha256
from bacl_jax.data.faults import Faults, summary
from bacl_jax.data.features import FeatureFiles
from bacl_jax.data.order import PartnerLists
from bacl_jax.data.sampler import Sampler
from bacl_jax.data.source import DataSet
from bacl_jax.data.stages import Stages
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.eval import benchmark_report, page, report, suite
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.examples import gather
from bacl_jax.eval.head import train_head
from bacl_jax.eval.look import look
from bacl_jax.eval.tasks import check_tasks
from bacl_jax.mesh import make_mesh, on_local_devices, process_blocks, to_host
from bacl_jax.objective import mmcl_term
from bacl_jax.rules import check_divides
from bacl_jax.train import precompute as stored_features
from bacl_jax.train import spectral, trackers
from bacl_jax.train.checkpoint import Checkpoints
from bacl_jax.train.goodput import process_began
from bacl_jax.train.hooks import Preemption
from bacl_jax.train.loop import Loop
from bacl_jax.train.processes import on_process_0
from bacl_jax.train.services import Look
from bacl_jax.train.state import TrainState
from bacl_jax.train.step import Trainer, build
from bacl_jax.train.tracing import Asked
from bacl_jax.train.workdir import check_workdir, claim_workdir
from bacl_jax.types import Batch
from launch import distributed
from launch.beginning import begin, check_rows, keep_rows, read_data, tokenizer_of

AT_THE_END = ("localization", "fusion")  # tasks that take long: not while training
HEAD_STEPS = 500  # of the cross-modal head that localisation gets for a model without one


@dataclasses.dataclass(frozen=True)
class Run:
    """A config with everything that it names, ready to train or to evaluate. read: gives the data, once they are needed."""

    config: Config
    read: Callable[[], DataSet]
    tokenizer: Tokenizer
    trainer: Trainer
    faults: Faults | None = None
    stages: Stages = dataclasses.field(default_factory=Stages)
    features: FeatureFiles | None = None  # what is stored of frozen towers
    _embeddings: dict[str, Embeddings] = dataclasses.field(default_factory=dict, init=False)
    _looks: dict[int, Look] = dataclasses.field(default_factory=dict, init=False)  # step of the last evaluation -> what trackers get

    @functools.cached_property
    def dataset(self) -> DataSet:
        return self.read()

    def loop(self, checkpoints: Checkpoints, asked: Asked | None = None, began: float | None = None) -> Loop:
        """The training loop over this run's data, evaluated on eval.split where the data has rows there. asked, began: as of Loop."""
        config, split, evaluated = self.config, self.config.eval.split, self.is_evaluated
        if not evaluated:
            print(
                f"not evaluated while training: eval.split = {split}, splits with rows: {self.filled_splits()}, tasks: {config.eval.tasks}"
            )
        return Loop(
            config=config,
            trainer=self.trainer,
            batches=self.batches,
            rows=len(self.dataset.train),
            checkpoints=checkpoints,
            tokenizer=self.tokenizer.to_json(),
            evaluate=self.evaluate if evaluated else None,
            headline=f"{split}/retrieval/{config.train.keep_best or f'{config.data.anchors[0][0]}2t_R@1'}" if evaluated else None,
            check=self.check_weights,
            begin=self.begin,
            statistics=self.statistics,
            stages=self.stages,
            look=lambda step: self._looks.pop(step, None),
            asked=asked or Asked(),
            began=began,
        )

    @property
    def is_evaluated(self) -> bool:
        """Whether it is while it trains: it has tasks, and the data have rows in eval.split."""
        return self.config.eval.split in self.filled_splits() and len(self.config.eval.tasks) > 0

    def begin(self, state: TrainState) -> TrainState:
        """What a run without a checkpoint makes of its fresh state: published weights, and heads of a spectral warm start."""
        state = begin(self.config, self.trainer, state)
        if not self.config.optim.spectral.enabled:
            return state
        self.check_weights(state)  # before a pass over features that other weights made
        shard = process_blocks(self.trainer.mesh)
        read = functools.partial(
            data.batches, self.dataset, self.tokenizer, self.config, start_step=0, shard=shard, stored=self.features
        )  # no faults: what is left out is counted when it is trained on
        return spectral.warm_start(self.trainer, state, read, len(self.dataset.train))

    def check_weights(self, state: TrainState) -> None:
        """ConfigError where the stored features were made by other weights than those of the state."""
        if self.features is not None:
            towers = self.features.index.towers
            self.features.check(
                stored_features.weights(to_host({"towers": {name: state.params["towers"][name] for name in towers}}), towers)
            )

    def statistics(self, step: int) -> Mapping[str, float]:
        """Of what the steps before `step` read: epochs and bad rows (of this process), of each source where there are several."""
        parts = self.dataset.parts()
        bad = {} if self.faults is None else self.faults.before(step)
        epochs = self._sampler.epochs(step)
        places = ["data" if len(parts) == 1 else f"data/{part.name}" for part in parts]
        return {
            f"{place}/{what}": value
            for part, place in zip(parts, places, strict=True)
            for what, value in (("epochs", epochs[part.name]), ("bad_rows", bad.get(part.name, 0)))
        }

    @functools.cached_property
    def _sampler(self) -> Sampler:
        return Sampler(self.config.seed, self.config.train.batch_size, self.dataset.parts(), self.config.data)

    def batches(self, start_step: int, partners: PartnerLists) -> Iterator[tuple[int, Batch]]:
        """(step, this host's batch) from `start_step` on."""
        config, bns = self.config, self.config.objective.bns
        return data.batches(
            self.dataset,
            self.tokenizer,
            config,
            start_step=start_step,
            partners=partners if bns.draws_partners else None,
            partner_share=functools.partial(schedules.partner_share, steps=config.train.steps, config=bns),
            shard=process_blocks(self.trainer.mesh),
            faults=self.faults,
            stages=self.stages,
            stored=self.features,
        )

    def evaluate(self, state: TrainState, step: int) -> Mapping[str, float]:
        """Results on eval.split while training, named <split>/<task>/<metric>.

        What takes long is left for the report at the end: localisation, and in retrieval the images of other splits and re-ranking.
        With several processes the first one evaluates, on its own devices, and the others wait for its results.
        """
        tasks, split = [task for task in self.config.eval.tasks if task not in AT_THE_END], self.config.eval.split
        options = {"retrieval": {"all_images": False, "rerank": False}} if "retrieval" in tasks else {}
        params, watched = self.eval_params(state), bool(self.config.watch.trackers)

        def compute() -> dict[str, float]:
            embeddings = self.embeddings(on_local_devices(params), split, show_progress=False)
            results = suite.measure(embeddings, tasks, options)
            if watched:
                self._looks[step] = look(embeddings, split)
            return {f"{split}/{task}/{name}": value for task, metrics in results.items() for name, value in metrics.items()}

        return on_process_0(f"evaluation of step {step}", compute)

    def eval_params(self, state: TrainState) -> dict[str, Any]:
        """The parameters for evaluation, such that a computation of one process can use them; all processes must ask."""
        return to_host(self.trainer.eval_params(state))

    def filled_splits(self) -> list[str]:
        return [name for name, split in self.dataset.splits.items() if len(split.source)]

    def reported_split(self) -> str | None:
        """eval.report, else the split that the run evaluates while it trains; None where both are empty."""
        return next((name for name in (self.config.eval.report, self.config.eval.split) if name in self.filled_splits()), None)

    def finish(self, workdir: str | os.PathLike[str], params: Any, step: int) -> None:
        """The report at the end of training, where there is something to report, and what was left out of the data; then DIR/done."""
        print("".join(f"{line}\n" for line in summary(workdir)), end="")
        split = self.reported_split()
        if split is not None and self.config.eval.tasks:
            self.report(workdir, params, step, self.config.eval.tasks, split)
        (Path(workdir) / "done").touch()

    def report(
        self, workdir: str | os.PathLike[str], params: Any, step: int, tasks: Sequence[str], split: str, plots: str | None = "plots"
    ) -> None:
        """Writes DIR/eval/<step>/<task>.json, DIR/<plots> (None: no plots) and DIR/report, prints results as a table and where files are.

        Another split than the reported one goes to DIR/eval/<step>/<split>/ and makes no plots; plots elsewhere come without a page.
        """
        check_tasks(tasks)
        params = on_local_devices(params)
        embeddings = self.embeddings(params, split)
        results = {task: suite.TASKS[task](embeddings, **self.options(task, params)) for task in tasks}
        main, described = split == self.reported_split(), f"{self.config.data.kind}/{split}"
        subfolder = "" if main else split  # the results of another split do not replace those of the report
        paths = suite.write(workdir, step, results, config_sha256=sha256(self.config), data=described, subfolder=subfolder)
        print(f"step {step}, {split} split of {self.dataset.description}")
        report.print_tables(results)
        pictures = report.write_plots(workdir, embeddings, plots) if main and plots and self.config.eval.plots else []
        if pictures and plots == "plots":
            pictures.append(page.write(workdir, gather(embeddings, step)))
        print("\n".join(map(str, [*paths, *pictures])))

    def embeddings(self, params: Any, split: str, *, show_progress: bool = True) -> Embeddings:
        """Of a split; what does not depend on the parameters is computed for the first of them, and no parameters are kept."""
        if split not in self._embeddings:
            self._embeddings[split] = Embeddings(self.trainer, None, self.dataset, self.tokenizer, self.config, split)
        found = self._embeddings[split].with_params(params)
        found.show_progress = show_progress
        return found

    def benchmarks(self, workdir: str | os.PathLike[str], params: Any, step: int, tasks: Sequence[str]) -> None:
        """Tasks on data of their own: DIR/eval/<step>/<task>.json, and in DIR/eval/<step>/<task> the list of what was not scored.

        A task that the run's own data have, too, goes to DIR/eval/<step>/<name of the file>_<split>/.
        """
        encoder = Encoder(self.trainer, on_local_devices(params), self.tokenizer, self.config, show_progress=True)
        for task in tasks:
            outcome, path = suite.BENCHMARKS[task](encoder), str(suite.path_of(self.config, task))
            written = {"config_sha256": sha256(self.config), "data": path, "subfolder": suite.subfolder_of(self.config, task)}
            paths = suite.write(workdir, step, {task: outcome.metrics}, **written)
            paths.append(benchmark_report.write_left_out(paths[0].with_suffix("") / "left_out.csv", outcome.left_out))
            print(f"step {step}, {path}")
            report.print_tables({task: outcome.metrics})
            print(benchmark_report.not_understood(outcome.metrics) + "\n".join(map(str, paths)))

    def options(self, task: str, params: Any) -> dict[str, Any]:
        """Localisation of a model without CLA: the same layers, trained afterwards on its frozen towers."""
        if task != "localization" or self.config.objective.cla.enabled:
            return {}
        return {"baseline": train_head(self.config, self.dataset, self.tokenizer, params, steps=HEAD_STEPS)}


def open_run(config: Config, dataset: DataSet, checkpoints: Checkpoints) -> Run:
    """Takes the tokenizer from the newest checkpoint, or reads or trains it; builds the trainer. Compiles nothing yet."""
    checkpoints.check_config(config)
    mesh = make_mesh(config.mesh)
    tokenizer = tokenizer_of(config, dataset, checkpoints)
    if cut := tokenizer.too_long(dataset.captions):
        print(f"{cut:,} of {len(dataset.captions):,} captions are cut to data.context_length = {tokenizer.context_length} tokens")
    features = stored_features.opened(config, dataset, tokenizer)
    stored = {} if features is None else dict.fromkeys(features.index.towers, features.index.dtype)
    trainer = build(config, tokenizer.vocab_size, mesh, stored)
    stored_features.check_storable(trainer.abstract_state().params, config.optim.frozen, [*stored], config.data.features or "")
    mmcl_term.check(config.objective)
    spectral.check(config, trainer.abstract_state().params)
    if config.optim.frozen:
        print(paths.summary(trainer.abstract_state().params, config.optim.frozen))
    if mesh.size > 1:
        sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
        print(f"mesh {sizes}: {partition.summary(trainer.abstract_state().params, config.mesh)}")
    process = f".{jax.process_index()}" if jax.process_index() else ""
    first = min(checkpoints.steps(), default=0)
    path = None if checkpoints.read_only else checkpoints.workdir / f"data_errors{process}.jsonl"
    faults = Faults(config.data.max_error_share, path, first_step=first)
    if jax.process_index() == 0:  # every process opens the same files
        for name, errors in dataset.left_out_by_part().items():
            faults.opened(name, errors)
    return Run(config, lambda: dataset, tokenizer, trainer, faults, features=features)


def train(config: Config, workdir: str, preemption: Preemption, asked: Asked | None = None, dataset: DataSet | None = None) -> bool:
    """Trains and reports; False if a signal came before the end. asked: whether a trace is asked for. dataset: the data, if read before."""
    began = process_began() if dataset is None else time.monotonic()  # of several runs in a process, each has its own time
    check_workdir(workdir, config)
    check_divides(make_mesh(config.mesh).size, config)  # before the data are read, which may take long
    trackers.check(config)
    dataset = dataset or read_data(config)  # before orbax's threads run: bad data end the run with one line
    check_rows(workdir, dataset)
    with Checkpoints(workdir, keep=config.train.keep) as checkpoints:
        run = open_run(config, dataset, checkpoints)
        claim_workdir(workdir, config)
        keep_rows(workdir, dataset)
        (Path(workdir) / "done").unlink(missing_ok=True)  # a finished run may go on with more steps
        outcome = run.loop(checkpoints, asked, began).run(preemption)
        params = run.eval_params(outcome.state)
    if not distributed.leave() or outcome.status == "preempted":
        return outcome.status == "done"
    try:
        preemption.interrupt()  # the state is saved, and the report is made again by the same command
        run.finish(workdir, params, outcome.position.step)
    except KeyboardInterrupt:
        return False
    return True
