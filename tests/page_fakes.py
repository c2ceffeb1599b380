"""A run as files, and examples of a model, with captions that a page must not trust; for the tests of DIR/report/index.html."""

import dataclasses
import json

import numpy as np
from eval_fakes import CONFIG, Trainer, dataset, unit

from bacl_jax.config import Config, to_dict
from bacl_jax.config_objective import BNSConfig, CLAConfig, ObjectiveConfig
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.examples import gather
from bacl_jax.eval.pictures import Triptych

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "https://example.com/a?b=c&d=<e>",
    "w" * 300,
    "كلب أحمر على العشب",
    "🏳️‍🌈 a flag 👩🏽‍🚀",
    "{{ 7 * 7 }} {% raw %}",
    "--> ]]> </style>",
)
BACL = Config(objective=ObjectiveConfig(bns=BNSConfig(enabled=True), cla=CLAConfig(enabled=True)))
NEIGHBOURS = {0: [(1, 0, "colour")], 1: [(0, 0, "colour")], 4: [(5, 1, "</td>other")]}


class Tokenizer:
    """Caption number i becomes BOS, 4 + i, EOS; asked for all captions at once."""

    def encode(self, captions):
        ids = np.zeros((len(captions), 6), np.int32)
        ids[:, 0], ids[:, 1], ids[:, 2] = 1, 4 + np.arange(len(captions)), 2
        return ids, ids > 0


def embeddings(z, w, half_true=None, captions=HOSTILE):
    """Row r shows caption r, as eval_fakes looks them up."""
    data = dataset(range(len(z)), total=len(w), half_true=half_true)
    source = dataclasses.replace(data.splits["test"].source, captions=captions[: len(z)])
    split = dataclasses.replace(data.splits["test"], source=source)
    data = dataclasses.replace(data, captions=captions, splits={"test": split})
    return Embeddings(Trainer(), {"z": unit(z), "w": unit(w)}, data, Tokenizer(), CONFIG, "test")


def examples(attention=True):
    """Of a model that takes each row for the next one, and one pair of attention pictures."""
    w = np.eye(8)
    found = gather(embeddings(np.roll(w, 1, axis=1) + 0.4 * w, w, NEIGHBOURS), 40)
    random = np.random.default_rng(0)
    weights = random.random((3, 6, 4), np.float32)
    inner = np.asarray([False, True, True, True, False, False])
    picture = random.integers(0, 256, (32, 32, 3), np.uint8)
    captions, region = (f"{HOSTILE[0]} dog", "<b>cat</b> dog"), np.asarray([True, False, True, False])
    pair = Triptych(picture, picture, *captions, *weights, inner, inner, region)
    without = dataclasses.replace(pair, other=None, region=None)
    return dataclasses.replace(found, attention=(pair, without) if attention else (), grid=(2, 2))


def write_run(workdir, config=BACL, steps=60):
    """Metrics with gaps, results of two steps, a split of its own and a benchmark."""
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(to_dict(config)))
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "samples_seen": 16 * step, "wall_seconds": 2.0 * step, "loss": 5 / step}
        line |= {"loss_contrast": 4 / step, "lr": 1e-3, "grad_norm": 3.0 + step % 5, "temperature": 0.1}
        if config.objective.bns.enabled:
            line |= {"alpha": 0.3 - step / 80, "bs_drawn": -0.2, "bs_uniform": -0.4, "ambiguous_share": 0.3, "hard_share": 0.2}
            line |= {"bs_drawn_p10": -0.5, "bs_drawn_p50": -0.2, "bs_drawn_p90": 0.1 + step / 99, "hard_mass": 0.4, "q_entropy": 1.0}
            line |= {"false_positive_share": 0.1}
        if step % 20 == 0:
            line |= {"validation/retrieval/i2t_R@1": float(step), "validation/halftrue/halftrue_pairwise": 60.0}
        lines.append(json.dumps(line))
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for step in (20, 40):
        result(workdir, step, "retrieval", {"i2t_R@1": 50.0 + step, "i2t_R@1_chance": 0.25, "n": 1234})
    result(workdir, 40, "retrieval", {"i2t_R@1": 31.25, "n": 7}, data="emoji/validation", subfolder="validation")
    result(workdir, 40, "sugarcrepe", {"accuracy": 61.5, "accuracy_blind": 55.5, "accuracy_chance": 50.0}, data="coco/<b>sugar</b>")
    return workdir


def result(workdir, step, task, metrics, data="emoji/test", subfolder=""):
    folder = workdir / "eval" / str(step) / subfolder
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"task": task, "step": step, "config_sha256": "", "data": data, "metrics": metrics}
    (folder / f"{task}.json").write_text(json.dumps(entry))
