"""A run of a few numbers with the trackers that the environment names, for test_services.py: `python tracked_run.py WORKDIR [STEP]`.

It kills itself when the step STEP is due; with DELIVERED in the environment not before the trackers have what was logged.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from train_fakes import ROWS, TOKENIZER, FakeTrainer, fake_batches, tiny_config

from bacl_jax.config import from_config_dict, to_dict
from bacl_jax.train.checkpoint import Checkpoints
from bacl_jax.train.hooks import Preemption
from bacl_jax.train.loop import Loop
from bacl_jax.train.services import Look


def main(workdir, last=None):
    settings = to_dict(tiny_config(eval_every=4)) | {"watch": json.loads(os.environ["WATCH"])}
    config, picture = from_config_dict(settings), np.zeros((8, 12, 3), np.uint8)

    def batches(start, partners):
        for step, batch in fake_batches(config)(start, partners):
            while step == last:
                notes = [json.loads(path.read_text()) for path in (Path(workdir) / "trackers").glob("*.json")]
                if "DELIVERED" in os.environ and not any(note["step"] >= step - 1 for note in notes):
                    time.sleep(0.05)
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
            yield step, batch

    with Preemption() as preemption, Checkpoints(workdir) as checkpoints:
        run = Loop(
            config=config,
            trainer=FakeTrainer(),
            batches=batches,
            rows=ROWS,
            checkpoints=checkpoints,
            tokenizer=TOKENIZER,
            evaluate=lambda state, step: {"validation/retrieval/i2t_R@1": float(step)},
            headline="validation/retrieval/i2t_R@1",
            look=lambda step: Look(pictures={"validation/attention/1": picture}, histograms={"boundary_score": np.linspace(-1, 1, 99)}),
        )
        print(run.run(preemption).position.step)


if __name__ == "__main__":
    main(sys.argv[1], *(int(step) for step in sys.argv[2:]))
