"""What an experiment is: a claim, a computation that gives a table, and a picture of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

Tick = Callable[[float], None]  # told the share of the experiment's work that was just done; the shares add up to 1


@dataclasses.dataclass(frozen=True)
class Result:
    """table: all numbers of the picture, one row a measurement. metrics: what theory.json holds. verdict: what was found, in a sentence."""

    table: pd.DataFrame
    metrics: Mapping[str, float]
    verdict: str


@dataclasses.dataclass(frozen=True)
class Experiment:
    """name: of its files. claim: the statement that is tested, and whose it is. draw(result, figure): onto an empty matplotlib figure."""

    name: str
    claim: str
    run: Callable[[Tick], Result]
    draw: Callable[[Result, Any], None]
