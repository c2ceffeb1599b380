"""CLIP, ViT-B/32, on LAION-400M's scale: plain InfoNCE, batch 32,768. laion400m.py says what data it reads."""

from ml_collections import ConfigDict

from configs import laion400m


def get_config() -> ConfigDict:
    config = laion400m.get_config()
    config.model.image.patch = 32  # pixels a side of one token
    return config
