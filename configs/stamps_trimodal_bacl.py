"""BACL on pictures, speech and text: Tux Paint's stamps with their captions spoken in French and Spanish."""

from ml_collections import ConfigDict

from configs import stamps_audio_bacl


def get_config() -> ConfigDict:
    config = stamps_audio_bacl.get_config()
    config.data.anchors = ("image", "audio")  # what is paired with the text
    config.data.stamps.captions = "english"  # the language of the text
    config.data.tokenizer = "word"  # one token a word
    config.data.vocab_size = 4096  # tokens; upper bound
    config.data.context_length = 24  # tokens a caption, BOS and EOS included
    config.model.image.patch = 8  # pixels a side of one token
    config.model.image.width = 48  # channels of the token features
    config.model.image.depth = 1  # blocks
    config.objective.weights = (1.0, 1.0)  # of the terms of pictures and of sound
    config.train.steps = 700  # updates in all
    config.eval.tasks = ("retrieval", "halftrue", "fusion")  # what is evaluated
    return config
