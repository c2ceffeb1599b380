"""How much more pairs bring: training rows doubled three times, each set in the next one. 12 points on three seeds, for any config.

The numbers are those of the emoji pairs, of which 5,412 are for training.
"""

from collections.abc import Iterator

from launch.overrides import Override, product

shown = ("i2t_R@1_all", "halftrue_beat_all")


def sweep() -> Iterator[Override]:
    return product({"data.train_rows": (675, 1350, 2700, 5400), "seed": (0, 1, 2)})
