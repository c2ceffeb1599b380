"""What wrong pairs cost each objective: the emoji pairs with a share of the training captions shuffled. `benchmarks.wrong_pairs` runs it.

All runs share towers, optimiser, data order and length; a variant changes the objective alone. The towers are half as wide as those of
configs/base.py, so that the study takes less than an hour on two cores.
"""

from typing import Any

STEPS = 300  # of every reported run
SEEDS = (0, 1)  # reported
SHARES = (0, 10, 20, 40)  # percent of the training captions that are another row's
COPY_SEED = 0  # draws which

TUNING_STEPS, TUNING_SEED, TUNING_SHARE = 300, 100, 20  # of the trials, on validation; that seed is never reported
OBJECTIVE = ("i2t_R@1", "i2t_R@1_all")  # a trial is as good as their mean

TOWERS = {"model.image.width": 32, "model.text.width": 64, "model.text.heads": 2}
BASELINE = "InfoNCE"
CONFIGS = {
    "InfoNCE": "configs/emoji_clip.py",
    "BACL": "configs/emoji_bacl.py",
    "gce": "configs/emoji_mmcl.py",
    "ramp": "configs/emoji_mmcl.py",
    "softplus": "configs/emoji_mmcl.py",
}
TRIALS: dict[str, tuple[dict[str, Any], ...]] = {  # what is tried of the forms; InfoNCE and BACL stay as their configs are
    "gce": tuple({"objective.mmcl.q": q} for q in (0.3, 0.5, 0.7)),
    "ramp": tuple({"objective.mmcl.tau": tau} for tau in (1.0, 3.0)),
    "softplus": ({"objective.mmcl.tau": 1.0},),
}
EITHER = ("ramp", "softplus")  # only the better of these is reported
METRICS = ("i2t_R@1", "i2t_R@1_all", "halftrue_pairwise", "halftrue_beat_all")
