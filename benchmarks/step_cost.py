"""What each part of the objective adds to the time of a train step, as a ratio to InfoNCE's step in the same process.

    python -m benchmarks.step_cost --rounds=10

The variants of configs/studies/emoji.py on the emoji pairs. Their steps take turns, so that what disturbs the machine disturbs all of
them alike; a ratio is that of the medians. Partner lists (channel c) are timed as their share of a step.
"""

import statistics
import time
from typing import Any

import jax
from absl import app, flags

from bacl_jax import data, mesh
from bacl_jax.config import from_config_dict
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.train.step import build
from configs.studies import emoji as study
from launch import compare_points, points

ROUNDS = flags.DEFINE_integer("rounds", 10, "Turns; every variant makes two steps a turn.", lower_bound=1)
VARIANTS = flags.DEFINE_list("variants", list(study.VARIANTS), "Which of the study's variants.")


def seconds(function: Any, *arguments: Any) -> tuple[float, Any]:
    """Wall-clock of one call until its results are there."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def main(argv: list[str]) -> None:
    configs = {name: points.config_of(compare_points.point(name, 0, steps=study.STEPS)) for name in (study.BASELINE, *VARIANTS.value)}
    config = from_config_dict({})
    dataset = data.load(config.data)
    tokenizer = Tokenizer.train(dataset.captions, config.data)
    source = data.batches(dataset, tokenizer, config, start_step=0)
    batches = [next(source)[1] for _ in range(2)]
    trainers, states, times = {}, {}, {name: [] for name in configs}
    for name, one in configs.items():
        trainers[name] = build(one, tokenizer.vocab_size, mesh.make_mesh(one.mesh))
        states[name] = trainers[name].init(0)
        for batch in batches:  # compiles
            states[name], _ = jax.block_until_ready(trainers[name].step(states[name], batch))
        print(f"{name}: compiled", flush=True)
    for _ in range(ROUNDS.value):
        for name, trainer in trainers.items():
            for batch in batches:
                taken, (states[name], _) = seconds(trainer.step, states[name], batch)
                times[name].append(taken)
    base = statistics.median(times[study.BASELINE])
    print(f"\n| variant | ms a step | ratio to {study.BASELINE} |\n| --- | --- | --- |")
    for name, taken in times.items():
        lists, bns = 0.0, configs[name].objective.bns
        if bns.draws_partners:
            seconds(trainers[name].partner_lists, states[name])
            lists = seconds(trainers[name].partner_lists, states[name])[0] / bns.partner_every
        step = statistics.median(taken) + lists
        print(f"| {name} | {1e3 * step:.0f} | {step / base:.2f} |")


if __name__ == "__main__":
    app.run(main)
