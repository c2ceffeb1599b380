"""BACL on spoken captions: Tux Paint's stamps, French and Spanish speech with its text."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.kind = "stamps"  # Tux Paint's stamps
    config.data.anchors = ("audio",)  # what is paired with the text
    config.data.stamps.spoken = ("fr", "es")  # languages of the spoken captions
    config.data.validation_captions = 80  # held-out English captions for tuning, with what they are in other languages
    config.data.test_captions = 160  # held-out English captions for the reported table
    config.data.tokenizer = "bpe"  # byte pairs: words that are held out are spelt
    config.data.vocab_size = 800  # tokens
    config.data.context_length = 28  # tokens a caption, BOS and EOS included
    config.data.audio.rate = 8000  # samples a second
    config.data.audio.seconds = 2.5  # of a longer file a part: nine in ten are shorter
    config.data.audio.speed = 0.15  # played up to this share faster or slower, so that longer training helps
    config.data.audio.mel_bins = 40  # bands of the spectrogram
    config.data.audio.window = 256  # samples of a frame
    config.data.audio.hop = 128  # samples between two frames
    config.data.audio.time_width = 20  # frames; the widest span that SpecAugment blanks
    config.data.audio.bin_width = 5  # mel bins; the widest band that SpecAugment blanks
    config.model.audio.width = 96  # channels of the token features
    config.model.audio.depth = 2  # transformer blocks
    config.model.audio.patch_frames = 10  # frames of a patch
    config.model.audio.stride_frames = 8  # frames between two patches
    config.model.audio.patch_bins = 40  # mel bins of a patch: all
    config.model.audio.stride_bins = 40  # one band of patches
    config.model.text.depth = 1  # transformer blocks
    config.objective.bank_size = 2048  # slots of the memory bank
    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.bns.k = 2  # hardest candidates of an anchor, as 8 of a batch of 256
    config.objective.bns.pool = 8  # candidates of an anchor
    config.objective.bns.drawn_share = 0.0  # no captions out of the bank beside those of the batch: with so few rows they do not help
    config.objective.cla.enabled = True  # the local attention loss
    config.objective.cla.row_share = 0.25  # share of the rows that it sees each step
    config.optim.lr = 2e-3  # peak learning rate of AdamW
    config.train.steps = 800  # updates in all
    config.train.batch_size = 64  # pairs a step
    config.train.eval_every = 0  # steps between two evaluations; 0: at the end alone, for ten minutes are short
    config.train.keep_best = "a2t_R@1"  # the checkpoint kept beside the newest
    config.train.save_minutes = None  # None: saved by steps alone
    config.eval.tasks = ("retrieval", "halftrue")  # what is evaluated
    return config
