"""BACL, ViT-L/14, on LAION-400M's scale: batch 65,536, parameters over fsdp. laion400m.py says what data it reads."""

from ml_collections import ConfigDict

from configs import laion400m


def get_config() -> ConfigDict:
    config = laion400m.bacl(laion400m.get_config())
    config.model.embed_dim = 768  # width of the embedding that both towers share
    config.model.image.width = 1024  # channels of the token features
    config.model.image.depth = 24  # blocks
    config.model.image.heads = 16  # attention heads
    config.model.image.patch = 14  # pixels a side of one token
    config.model.text.width = 768  # channels of the token features
    config.model.text.heads = 12  # attention heads
    config.optim.lr = 4e-4  # peak learning rate of AdamW
    config.optim.cross_lr = 4e-4  # the same for CLA's cross-modal layers
    config.train.batch_size = 65_536  # pairs a step, over all devices
    config.train.steps = laion400m.steps(65_536)  # 32 passes over 400 million pairs
    config.mesh.fsdp = 16  # devices along the batch that also share parameters, optimiser and averages
    return config
