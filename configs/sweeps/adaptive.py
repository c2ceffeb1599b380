"""A search by Optuna over the recipe of BNS and CLA, for a config with both. What falls behind the median of the others is ended early."""

from typing import Any

from launch.overrides import Override


def suggest(trial: Any) -> Override:
    return {
        "optim.lr": trial.suggest_float("lr", 1e-3, 1e-2, log=True),
        "objective.bns.alpha_late": trial.suggest_float("alpha_late", -1.0, 0.0, step=0.1),
        "objective.bns.drawn_share": trial.suggest_categorical("drawn_share", (0.0, 0.25, 0.5, 1.0)),
        "objective.cla.lambda_local": trial.suggest_float("lambda_local", 0.01, 0.3, log=True),
    }
