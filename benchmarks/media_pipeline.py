"""Rows a second of the audio and video input pipelines, with the share of the readers' time that decoding takes.

    python -m benchmarks.media_pipeline --config=configs/stamps_audio_bacl.py
    python -m benchmarks.media_pipeline --config=configs/sprites_video_bacl.py --kept=False

--kept=False reads and decodes every row anew, as with data that do not fit into memory; with True, decoding is what is left once the
decoded sounds and frames are kept: cutting and cropping. The first batches are passed over, for the readers run ahead.
"""

import time
from unittest import mock

from absl import app, flags
from ml_collections import config_flags

from bacl_jax import data
from bacl_jax.config import from_config_dict
from bacl_jax.data import media
from bacl_jax.data.stages import Stages
from bacl_jax.data.tokenizer import Tokenizer

CONFIG = config_flags.DEFINE_config_file("config", help_string="Python file with get_config().")
SECONDS = flags.DEFINE_float("seconds", 20.0, "Time measured.", lower_bound=1.0)
KEPT = flags.DEFINE_bool("kept", True, "Whether decoded media are kept in memory.")


def main(argv: list[str]) -> None:
    config = from_config_dict(CONFIG.value)
    with mock.patch.object(media, "KEPT_BYTES", media.KEPT_BYTES if KEPT.value else 0):
        start = time.perf_counter()
        dataset = data.load(config.data)
    print(f"{dataset.description}: read in {time.perf_counter() - start:.1f} s")
    stages = Stages()
    source = data.batches(dataset, Tokenizer.train(dataset.captions, config.data), config, start_step=0, stages=stages)
    for _ in range(config.data.prefetch + 1):
        next(source)
    before, start, rows = stages.seconds(), time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < SECONDS.value:
        rows += len(next(source)[1].index)
    spent = {stage: seconds - before[stage] for stage, seconds in stages.seconds().items()}
    shares = ", ".join(f"{seconds / sum(spent.values()):.0%} {stage}" for stage, seconds in spent.items())
    print(f"{rows / taken:,.0f} rows a second with {config.data.threads} readers, whose time went: {shares}")


if __name__ == "__main__":
    app.run(main)
