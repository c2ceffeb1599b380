"""BACL on several data sets at once: emoji and your own pairs here; each source may be of any kind, and has its own share of every batch.

    python -m launch.train --config=configs/mixture.py --workdir=runs/mixture
    python -m launch.train --config=configs/mixture.py --workdir=runs/web \
        --config.data.sources="({'kind': 'webdataset', 'path': 'a/{000..127}.tar', 'weight': 3.0}, {'kind': 'parquet', 'path': 'b'})"
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.kind = "mixture"  # reads data.sources
    config.data.sources = (  # weights are shares of a batch; the fields of a source are those of SourceConfig in bacl_jax/config.py
        {"kind": "emoji", "weight": 3.0},
        {"kind": "manifest", "path": "pairs.csv", "split_column": "split", "weight": 1.0},
    )
    config.data.tokenizer = "bpe"  # captions in free text have no closed set of words
    config.data.context_length = 32  # tokens a caption, BOS and EOS included; longer captions are cut
    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.cla.enabled = True  # the local attention loss
    return config
