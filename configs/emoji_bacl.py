"""BACL: InfoNCE with BNS (channels a and b) and CLA."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.cla.enabled = True  # the local attention loss
    return config
