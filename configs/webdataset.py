"""BACL on tar shards as img2dataset writes them: `--config.data.path='shards/{00000..00099}.tar'`, after `launch.index`.

The other kinds that read rows as they are needed are set in the same way: --config.data.kind=parquet, array_record or tfds.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.kind = "webdataset"  # reads data.path, which must be set
    config.data.validation_rows = 1000  # kept out of training for tuning
    config.data.test_rows = 1000  # kept out of training for the reported table
    config.data.on_error = "skip"  # a bad row is counted, written down and replaced
    config.data.tokenizer = "bpe"  # captions in free text have no closed set of words
    config.data.context_length = 32  # tokens a caption, BOS and EOS included; longer captions are cut
    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.cla.enabled = True  # the local attention loss
    return config
