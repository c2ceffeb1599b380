"""MMCL: the general contrastive loss in a form that trusts pairs less that look wrong, cross-entropy generalised."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.objective.kind = "mmcl"  # phi(sum of psi) over the comparisons of a pair with its negatives
    config.objective.same_id = "mask"  # the pair itself is the one positive
    config.objective.mmcl.form = "gce"  # weights of InfoNCE times p^q, p what the model gives the pair
    return config
