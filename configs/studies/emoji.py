"""The comparison of BACL and its parts with InfoNCE on the emoji pairs: which runs, on which seeds, with what search before.

All runs share towers, optimiser, data order and length; a variant changes the objective alone. `python -m launch.compare` runs it.
"""

import random
from collections.abc import Callable
from typing import Any

STEPS = 1000  # of every reported run but those at equal wall-clock
TUNING_STEPS = 500  # of every trial
SEEDS = tuple(range(10))  # reported, InfoNCE and BACL
TIMING_SEEDS = SEEDS[:2]  # reported too; run first: their step times fix the steps at equal wall-clock
ABLATION_SEEDS = SEEDS[:5]  # reported, everything else
TUNING_SEEDS = (100,)  # never reported
TUNING_TRIALS = 6  # a side

OBJECTIVE = ("i2t_R@1_all", "halftrue_beat_all")  # a trial is as good as their mean on validation
BASELINE, METHOD = "clip", "bacl"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (config file, what it changes there)
    "clip": ("configs/emoji_clip.py", {}),
    "bacl": ("configs/emoji_bacl.py", {}),
    "bns": ("configs/emoji_bns.py", {}),
    "cla": ("configs/emoji_cla.py", {}),
    "bns_a": ("configs/emoji_bns.py", {"objective.bns.drawn_share": 0.0}),
    "bns_b": ("configs/emoji_bns.py", {"objective.bns.reweight": False}),
    "bns_b_uniform": (  # as many extra columns, drawn evenly: what hardness adds
        "configs/emoji_bns.py",
        {
            "objective.bns.reweight": False,
            "objective.bns.k": 1,
            "objective.bns.policy_bound": 1e-6,
            "objective.bns.alpha_early": 0.0,
            "objective.bns.alpha_late": 0.0,
        },
    ),
    "bns_c": (
        "configs/emoji_bns.py",
        {"objective.bns.reweight": False, "objective.bns.drawn_share": 0.0, "objective.bns.partner_share": 0.25},
    ),
    "cla_into_towers": ("configs/emoji_bacl.py", {"objective.cla.into_towers": True}),
    "bacl_all_rows": ("configs/emoji_bacl.py", {"objective.cla.row_share": 1.0}),  # CLA on every drawn row, which leaves the towers alone
    "bacl_all": ("configs/emoji_bacl.py", {"objective.bns.drawn_share": 1.0, "objective.cla.row_share": 1.0}),  # and every row draws
    "bacl_paper": ("configs/emoji_bacl_paper.py", {}),
}
HOLDOUTS: dict[str, dict[str, Any]] = {
    "compositional": {},
    "vendor": {"data.holdout": "vendor"},
}


def recipes(random: random.Random) -> dict[str, Any]:
    """What the baseline's trials search over; the best one becomes the recipe of every variant (configs/base.py)."""
    return {
        "optim.lr": random.choice((1e-3, 2e-3, 4e-3)),
        "optim.weight_decay": random.choice((0.1, 0.3)),
        "data.augment_scale": random.choice((0.05, 0.15)),
        "objective.init_scale": random.choice((7.0, 14.2857)),
    }


def methods(random: random.Random) -> dict[str, Any]:
    """What the method's trials search over, on the baseline's best recipe; docs/method.md says what was changed after them."""
    return {
        "objective.bns.reweight": random.choice((True, False)),
        "objective.bns.drawn_share": random.choice((0.25, 0.5, 1.0)),
        "objective.bns.midpoint": random.choice((0.15, 0.3, 0.5)),
        "objective.bns.k": random.choice((16, 32)),
        "objective.bns.pool": 64,
    }


def trials(search: Callable[[random.Random], dict[str, Any]]) -> list[dict[str, Any]]:
    """The first TUNING_TRIALS distinct points of a search space."""
    found: list[dict[str, Any]] = []
    seed = 0
    while len(found) < TUNING_TRIALS:
        point = search(random.Random(seed))
        seed += 1
        if point not in found:
            found.append(point)
    return found
