"""CLA alone: InfoNCE with the local attention loss, no drawn negatives in the contrastive term."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.objective.cla.enabled = True  # the local attention loss
    return config
