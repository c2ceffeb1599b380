"""BACL on pictures, synthetic speech and text: the emoji pairs with their names read aloud by eSpeak NG.

Set data.path to the pairs.csv that launch.speak wrote.
"""

from ml_collections import ConfigDict

from configs import stamps_audio_bacl


def get_config() -> ConfigDict:
    config = stamps_audio_bacl.get_config()
    config.data.kind = "clips"  # rows of a CSV file, pictures and sounds beside it
    config.data.anchors = ("image", "audio")  # what is paired with the text
    config.data.clips.image = "{image}"  # file of a row's picture
    config.data.clips.audio = "{audio}"  # file of its sound
    config.data.split_column = "split"  # column of the split: that of the emoji pairs
    config.data.tokenizer = "word"  # one token a word
    config.data.vocab_size = 4096  # tokens; upper bound
    config.data.context_length = 24  # tokens a caption, BOS and EOS included
    config.objective.bns.drawn_share = 0.25  # share of rows whose drawn bank caption is re-encoded as a column
    config.objective.weights = (1.0, 1.0)  # of the terms of pictures and of sound
    config.train.steps = 1000  # updates in all
    config.train.keep_best = "i2t_R@1"  # the checkpoint kept beside the newest
    return config
