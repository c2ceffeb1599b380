"""BACL with towers of CLIP's form, which launch.export writes for transformers and open_clip."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.tokenizer = "clip"  # byte pairs in CLIP's form; the end of a text has the largest id
    config.data.context_length = 16  # tokens; byte pairs are more than words
    config.data.vocab_size = 2048  # tokens
    config.data.resample = "bicubic"  # as CLIP's own preprocessing
    config.model.image.kind = "clip"  # class token, a norm before the blocks
    config.model.image.width = 128  # channels of the token features
    config.model.image.depth = 4  # blocks
    config.model.image.activation = "gelu"  # that of LAION's models; transformers and open_clip both have it
    config.model.image.pixels = "clip"  # mean and deviation by which pixels are normalised
    config.model.text.kind = "clip"  # causal, pools the end of the text
    config.model.text.depth = 2  # blocks
    config.model.text.activation = "gelu"  # as the image tower
    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.cla.enabled = True  # the local attention loss
    config.optim.lr = 1e-3  # peak learning rate of AdamW; transformers take less than convolutions
    return config
