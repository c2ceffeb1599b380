"""Writes DIR/report/index.html: a run as one page for a browser, which needs no network.

    python -m launch.report --workdir=runs/bacl
    python -m launch.report --workdir=runs/bacl --compare=runs/clip,runs/k64
    python -m launch.report --workdir=runs/bacl --model=False

--workdir  folder of a run of launch.train, finished or not.
--compare  folders of other runs, separated by commas, to be shown beside it.
--model    False: the run's files alone, which takes a second; else examples of what the model of the newest checkpoint does are added.

launch.train writes the page when it ends, and launch.evaluate anew. Exit codes: 0 done, 2 bad usage or config, else a crash.
"""

from absl import flags

from bacl_jax.config import ConfigError
from bacl_jax.errors import CheckpointError
from bacl_jax.eval import page
from bacl_jax.eval.examples import gather
from bacl_jax.eval.page_record import read
from bacl_jax.eval.restore import Restored, restore
from launch import command
from launch.session import Run

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
COMPARE = flags.DEFINE_list("compare", [], "Folders of other runs, separated by commas.")
MODEL = flags.DEFINE_bool("model", True, "Whether the newest checkpoint's model is looked at.")


def main() -> None:
    if WORKDIR.value is None:
        raise ConfigError("--workdir must be given, as in --workdir=runs/bacl; --help tells more")
    for workdir in (WORKDIR.value, *COMPARE.value):
        read(workdir)  # a wrong name ends it before the model is looked at
    examples = None
    if MODEL.value:
        found = _restored(WORKDIR.value)
        run = Run(found.config, lambda: found.dataset, found.tokenizer, found.trainer)
        if split := run.reported_split():
            examples = gather(run.embeddings(found.params, split), found.step)
    print(page.write(WORKDIR.value, examples, COMPARE.value))


def _restored(workdir: str) -> Restored:
    try:
        return restore(workdir)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; --model=False makes the page without the model") from error


if __name__ == "__main__":
    command.run(main, __doc__)
