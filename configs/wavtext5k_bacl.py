"""BACL on sound and text: WavText5K (arXiv 2209.14275) as its repository publishes it, WavText5K.csv and the folder that process.py fills.

Set data.path to the CSV file and data.clips.folder to the folder of the sound files.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.kind = "clips"  # rows of a CSV file, sounds beside it
    config.data.anchors = ("audio",)  # what is paired with the text
    config.data.caption_column = "description"  # column of the caption
    config.data.clips.audio = "{fname}"  # file of a row, relative to data.clips.folder
    config.data.validation_rows = 250  # rows kept out of training for tuning
    config.data.test_rows = 500  # the same for the reported table
    config.data.on_error = "skip"  # links that are gone leave files that are none
    config.data.max_error_share = 0.2  # a larger share of bad rows among those read stops the run
    config.data.tokenizer = "bpe"  # byte pairs, trained on the captions
    config.data.vocab_size = 8192  # tokens
    config.data.context_length = 64  # tokens a caption, BOS and EOS included
    config.data.audio.seconds = 10.0  # of a longer file a part
    config.data.audio.mel_bins = 128  # bands of the spectrogram
    config.data.audio.time_width = 192  # frames; the widest span that SpecAugment blanks
    config.data.audio.bin_width = 48  # mel bins; the widest band that SpecAugment blanks
    config.model.embed_dim = 512  # width of the embedding that both towers share
    config.model.audio.width = 768  # channels of the token features
    config.model.audio.depth = 12  # transformer blocks
    config.model.audio.heads = 12  # attention heads
    config.model.audio.stride_frames = 10  # frames between two patches of 16
    config.model.audio.stride_bins = 10  # mel bins between two patches of 16
    config.model.text.width = 512  # channels of the token features
    config.model.text.depth = 6  # transformer blocks
    config.model.text.heads = 8  # attention heads
    config.model.dtype = "bfloat16"  # of the computation; parameters stay float32
    config.model.remat = "dots"  # made again in the backward pass: all but matrix products
    config.model.scan_layers = True  # a tower's blocks are compiled once, as a loop
    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.cla.enabled = True  # the local attention loss
    config.objective.cla.width = 256  # of the cross-modal layers
    config.objective.bank_size = 4096  # slots of the memory bank
    config.optim.lr = 5e-4  # peak learning rate of AdamW
    config.optim.cross_lr = 5e-4  # the same for CLA's cross-modal layers
    config.optim.warmup_steps = 200  # steps of linear warm-up
    config.train.steps = 5000  # updates in all
    config.train.keep_best = "a2t_R@1"  # the checkpoint kept beside the newest
    config.eval.tasks = ("retrieval", "halftrue")  # what is evaluated
    config.eval.batch_size = 64  # rows encoded at a time
    return config
