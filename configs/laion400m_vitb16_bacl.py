"""BACL, ViT-B/16, on LAION-400M's scale: batch 32,768, bank 65,536. laion400m.py says what data it reads."""

from ml_collections import ConfigDict

from configs import laion400m


def get_config() -> ConfigDict:
    return laion400m.bacl(laion400m.get_config())
