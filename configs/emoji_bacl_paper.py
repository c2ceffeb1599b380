"""BACL as the paper (arXiv 2511.08399) reads literally; where it is silent, as in base.py."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    bns = config.objective.bns
    bns.enabled = True  # the sampler of hard negatives
    bns.k = 32  # candidates of an anchor
    bns.pool = 32  # all of its candidates: the nearest neighbours and nothing else
    bns.policy_bound = None  # None: the policy's score is unbounded
    bns.reweight = False  # no channel (a)
    bns.drawn_share = 1.0  # channel (b), "one extra forward pass per sample"
    bns.partner_share = 0.0  # no channel (c)
    cla = config.objective.cla
    cla.enabled = True  # the local attention loss
    cla.layers = 4  # cross-modal layers
    cla.width = 128  # of the cross-modal layers
    cla.heads = 4  # attention heads
    cla.lambda_local = 0.3  # weight of the local loss
    cla.into_towers = True  # towers and cross-modal layers are one model: no frozen towers here
    cla.row_share = 1.0  # every row
    cla.lambda_match = 0.0  # no matching loss
    return config
