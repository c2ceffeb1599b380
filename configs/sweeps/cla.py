"""CLA's local loss: its weight lambda, the boost beta, the size of Omega. 18 points, for a config with CLA."""

from collections.abc import Iterator

from launch.overrides import Override, product

shown = ("ael", "halftrue_beat_all")


def sweep() -> Iterator[Override]:
    return product(
        {
            "objective.cla.lambda_local": (0.03, 0.1, 0.3),
            "objective.cla.beta": (0.0, 1.0, 2.0),
            "objective.cla.top": (5, 10),
        }
    )
