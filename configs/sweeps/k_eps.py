"""The candidates k and the margin eps, as in the paper's figure 5: false positives and R@10. 8 points, for a config with BNS.

eps says which candidates count as ambiguous. Here it decides what is measured and not what is drawn, so it changes shares, not R@10.
"""

from collections.abc import Iterator

from launch.overrides import Override, chain

shown = ("i2t_R@10", "false_positive_share", "ambiguous_share", "hard_mass")


def sweep() -> Iterator[Override]:
    return chain(
        {"objective.bns.k": (2, 4, 8, 12, 16), "objective.bns.eps": (0.1,)},
        {"objective.bns.k": (8,), "objective.bns.eps": (0.02, 0.05, 0.2)},
    )
