"""CLIP: plain InfoNCE, the baseline that the others are compared with."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.get_config()
