"""The task `audit`: the pairs of a split, looked at by several checkpoints of a run."""

import functools
import os
from collections.abc import Sequence

from bacl_jax.config import ConfigError, sha256
from bacl_jax.eval import audit_report, corpus, suite
from bacl_jax.eval.audit import audit
from bacl_jax.mesh import on_local_devices
from bacl_jax.rules import check_pictures
from bacl_jax.train.checkpoint import Checkpoints
from launch.session import Run


def run_audit(run: Run, workdir: str | os.PathLike[str], step: int) -> None:
    """The task `audit` on the pairs of eval.audit.split, by the checkpoints of eval.audit.steps, `step` the newest.

    Writes DIR/eval/<step>/audit.json and, in DIR/eval/<step>/audit, lists and pictures; for another split than train in
    DIR/eval/<step>/<split>/.
    """
    config, split = run.config, run.config.eval.audit.split
    check_pictures(config, "the task audit", alone=True)
    source = run.dataset.complete() if split == "train" else run.dataset.splits[split].source
    if not len(source):
        filled = ", ".join(["train", *run.filled_splits()])
        raise ConfigError(f"config.eval.audit.split = {split!r}: the data set has no rows there; splits with rows: {filled}")

    with Checkpoints(workdir, read_only=True) as checkpoints:
        steps = audited_steps(checkpoints.steps(), config.eval.audit.steps, step)

        def read(step: int) -> corpus.Corpus:
            _, params = checkpoints.restore_params(run.trainer.abstract_params(), step)
            return corpus.read(run.trainer, on_local_devices(params), run.tokenizer, source, config, show_progress=True)

        reads = [functools.partial(read, one) for one in steps]
        findings = audit(reads, config.eval.audit, chunk=config.eval.chunk, shards=run.trainer.shards, show_progress=True)
    written = {"config_sha256": sha256(config), "data": f"{config.data.kind}/{split}", "subfolder": "" if split == "train" else split}
    paths = suite.write(workdir, step, {"audit": findings.metrics}, **written)
    folder = paths[0].with_suffix("")
    paths += audit_report.write(folder, findings) + audit_report.draw(folder, findings, source, config.eval.audit.shown)
    print(f"steps {', '.join(map(str, steps))}, {split} pairs of {run.dataset.description}")
    audit_report.print_findings(findings)
    print("\n".join(map(str, paths)))


def audited_steps(kept: Sequence[int], wanted: Sequence[int], newest: int) -> list[int]:
    """Checkpoints that an audit averages over, ascending: `wanted`, or all that are kept, up to `newest`. ConfigError if one is not."""
    lacking = sorted(step for step in wanted if step not in kept or step > newest)
    if lacking:
        there = ", ".join(str(step) for step in kept if step <= newest)
        raise ConfigError(f"config.eval.audit.steps: no checkpoint of step {', '.join(map(str, lacking))}; there are {there}")
    return sorted({step for step in wanted or kept if step <= newest})
