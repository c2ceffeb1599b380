"""BACL on short clips: Widelands' sprites, who does what in which direction."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.kind = "sprites"  # Widelands' animations
    config.data.anchors = ("video",)  # what is paired with the text
    config.data.validation_captions = 100  # held-out captions for tuning
    config.data.test_captions = 300  # held-out captions for the reported table
    config.data.context_length = 8  # tokens a caption, BOS and EOS included: the longest has so many
    config.data.video.frames = 3  # of a clip
    config.model.image.patch = 8  # pixels a side of one token: four times as fast as 4
    config.model.image.width = 48  # channels of the token features
    config.model.image.depth = 1  # blocks of the tower of each frame
    config.objective.bank_size = 1024  # slots of the memory bank
    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.cla.enabled = True  # the local attention loss
    config.optim.lr = 2e-3  # peak learning rate of AdamW
    config.train.steps = 900  # updates in all
    config.train.batch_size = 64  # pairs a step
    config.train.eval_every = 0  # steps between two evaluations; 0: at the end alone, for ten minutes are short
    config.train.keep_best = "v2t_R@1"  # the checkpoint kept beside the newest
    config.train.save_minutes = None  # None: saved by steps alone
    return config
