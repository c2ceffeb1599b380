"""One run of the real trainer on the synthetic data, for test_resume.py, which kills it: `python resume_run.py WORKDIR STEPS`.

Prints each step as it is queued. At the end it writes WORKDIR/final.npz: every leaf of the state, and the rows of the next 100 steps'
batches as the input pipeline gives them to a run that goes on.
"""

import itertools
import sys

import jax
import numpy as np

from bacl_jax.config import from_config_dict
from bacl_jax.data import synthetic
from bacl_jax.data.order import PartnerLists
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.mesh import make_mesh
from bacl_jax.train import goodput
from bacl_jax.train.checkpoint import Checkpoints
from bacl_jax.train.hooks import Preemption
from bacl_jax.train.step import build
from bacl_jax.train.workdir import claim_workdir
from launch.session import Run

NEXT_STEPS = 100
goodput.BEAT = 0.005  # a kill is to find a sign of life between the last save and itself


def config_of(steps):
    tower = {"width": 16, "depth": 1, "heads": 2}
    bns = {
        "enabled": True,
        "k": 4,
        "pool": 16,
        "partner_k": 4,
        "partner_every": 5,
        "list_delay": 5,
        "hidden": 16,
        "drawn_share": 0.25,
        "partner_share": 0.25,
    }
    cla = {"enabled": True, "width": 16, "heads": 2}
    return from_config_dict(
        {
            "data": {"image_size": 16, "augment_flip": True, "prefetch": 2},
            "model": {"embed_dim": 16, "image": tower, "text": tower},
            "objective": {"bank_size": 100, "bns": bns, "cla": cla},
            "optim": {"warmup_steps": 5, "ema_decay": 0.9},
            "train": {"steps": steps, "batch_size": 16, "log_every": 1, "eval_every": 0, "save_every": 7, "save_minutes": 0.02},
            "eval": {"tasks": ["retrieval"]},
        }
    )


def main(workdir, steps):
    config = config_of(steps)
    with Preemption() as preemption:
        claim_workdir(workdir, config)
        dataset = synthetic.load(config.data)
        tokenizer = Tokenizer.train([dataset.captions[i] for i in dataset.train_caption], config.data)
        run = Run(config, lambda: dataset, tokenizer, build(config, tokenizer.vocab_size, make_mesh(config.mesh)))
        with Checkpoints(workdir) as checkpoints:
            outcome = run.loop(checkpoints).run(preemption)
            print(outcome.status, outcome.position.step, flush=True)
            if outcome.status == "preempted":
                print("preempted, resume with the same command")
                return
            restored = checkpoints.restore(run.trainer.abstract_state(), len(dataset.train))
    assert restored is not None
    lists = PartnerLists()
    for one in restored.partners:
        lists.put(one)
    rows = [batch.index for _, batch in itertools.islice(run.batches(steps, lists), NEXT_STEPS)]
    leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(outcome.state)}
    np.savez(f"{workdir}/final.npz", next_rows=np.stack(rows), **leaves)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
