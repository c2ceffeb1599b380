"""The names of the evaluation tasks: known before anything that evaluates is imported. `suite` has what they do."""

from collections.abc import Sequence

from bacl_jax.config import ConfigError

ON_SPLITS = ("retrieval", "halftrue", "localization", "robustness", "fusion")  # of the run's own data
AUDIT = "audit"  # looks at pairs, not at a split's images and captions
ON_FILES = ("classification", "probe", "retrieval", "robustness", "sugarcrepe", "sugarcrepe_pp", "winoground", "aro", "valse")
ALL = tuple(dict.fromkeys((*ON_SPLITS, AUDIT, *ON_FILES)))


def check_tasks(tasks: Sequence[str], allowed: Sequence[str] = ON_SPLITS) -> None:
    """Raise ConfigError, with the allowed names, when a task is unknown or when there is none."""
    unknown = [task for task in tasks if task not in allowed]
    if unknown or not tasks:
        raise ConfigError(f"eval.tasks: {', '.join(unknown) or 'no task given'}; allowed: {', '.join(allowed)}")
