"""BNS's curriculum: what is suppressed early, what is sought late, how fast it turns. 27 points, for a config with BNS."""

from collections.abc import Iterator

from launch.overrides import Override, product


def sweep() -> Iterator[Override]:
    return product(
        {
            "objective.bns.alpha_early": (0.0, 0.3, 0.6),
            "objective.bns.alpha_late": (-0.25, -0.5, -1.0),
            "objective.bns.slope": (0.75, 1.5, 3.0),
        }
    )
