"""BNS alone: InfoNCE with drawn hard negatives (channels a and b), no local attention."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.objective.bns.enabled = True  # the sampler of hard negatives
    return config
