"""BNS and CLA, each alone, both, and neither, as in the paper's figure 2. 12 points on three paired seeds, for any config."""

from collections.abc import Iterator

from launch.overrides import Override, product

shown = ("i2t_R@10", "halftrue_beat_all")


def sweep() -> Iterator[Override]:
    return product({"objective.bns.enabled": (False, True), "objective.cla.enabled": (False, True), "seed": (0, 1, 2)})
