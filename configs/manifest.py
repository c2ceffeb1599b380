"""BACL on image-caption pairs of your own: `--config.data.path=pairs.csv` names the CSV, JSONL or Parquet file."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.kind = "manifest"  # reads data.path, which must be set
    config.data.tokenizer = "bpe"  # captions in free text have no closed set of words
    config.data.context_length = 32  # tokens a caption, BOS and EOS included; longer captions are cut
    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.cla.enabled = True  # the local attention loss
    return config
