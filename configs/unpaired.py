"""InfoNCE on pairs of your own beside rows that lack a caption or an image: `--config.data.path=pairs.csv` names the manifest."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.kind = "manifest"  # reads data.path, which must be set
    config.data.unpaired_share = 0.5  # share of a batch's places with a picture and a caption of rows that lack the other
    config.data.tokenizer = "bpe"  # captions in free text have no closed set of words
    config.data.context_length = 32  # tokens a caption, BOS and EOS included; longer captions are cut
    config.objective.bank_size = 8192  # slots: partners are sought among so many of the last places
    config.objective.unpaired.enabled = True  # pictures without a caption train with their probable ones
    return config
