"""What rows without a partner add to a quarter of the emoji pairs: picture and caption of the others apart. For `benchmarks.unpaired`.

All runs share optimiser, length, batch size and held-out captions. The towers are half as wide as those of configs/base.py, so that the
study takes an hour on two cores.
"""

from typing import Any

STEPS = 600
SEEDS = (0, 1, 2, 3, 4)  # reported; the recipe was chosen with seed 100, on validation
SHARE = 0.25  # of the training pairs that are kept
COPY_SEED = 0  # draws which

CONFIG = "configs/emoji_clip.py"
TOWERS = {"model.image.width": 32, "model.text.width": 64, "model.text.heads": 2}
ALONE = {"data.unpaired_share": 0.5, "data.truth_column": "truth", "objective.bank_size": 8192}
BASELINE, METHOD, WHILE_TRAINING, BOUND = "pairs alone", "captions found by two runs", "captions found while training", "all pairs"
FIRST = "first runs"  # two of pairs alone for each seed, which find the captions
FIRST_SEEDS = (1000, 2000)  # plus the seed
FOUND = "found-{seed}.csv"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (manifest, what it changes)
    BASELINE: ("paired.csv", {}),
    METHOD: (FOUND, {}),
    WHILE_TRAINING: ("unpaired.csv", ALONE | {"objective.unpaired.enabled": True}),
    BOUND: ("full.csv", {}),
    "negatives alone": ("unpaired.csv", ALONE),  # what stands alone is a further negative of the pairs, and nothing else
}
MATCH = {"share": 0.125, "tau": 0.05}  # launch.match's defaults, chosen with seeds 100 and 101 on validation
METRICS = ("i2t_R@1", "i2t_R@5", "t2i_R@1", "i2t_mAP")
