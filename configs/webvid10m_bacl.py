"""BACL on video and text: WebVid-10M (arXiv 2104.00650) as it is published, a CSV file and <page_dir>/<videoid>.mp4.

Set data.path to the CSV file (results_10M_train.csv) and data.clips.folder to the folder of the page_dirs. For a frozen image tower set
optim.frozen = ("towers/video/frames/.*",).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.kind = "clips"  # rows of a CSV file, videos beside it
    config.data.anchors = ("video",)  # what is paired with the text
    config.data.caption_column = "name"  # column of the caption
    config.data.id_column = "videoid"  # column of the anchor's key
    config.data.clips.video = "{page_dir}/{videoid}.mp4"  # file of a row, relative to data.clips.folder
    config.data.validation_rows = 1000  # rows kept out of training for tuning
    config.data.test_rows = 5000  # the same for the reported table
    config.data.on_error = "skip"  # some of so many files are damaged
    config.data.max_error_share = 0.05  # a larger share of bad rows among those read stops the run
    config.data.image_size = 224  # pixels a side of a frame
    config.data.resample = "bicubic"  # filter that scales crops
    config.data.tokenizer = "bpe"  # byte pairs, trained on the captions
    config.data.vocab_size = 32_768  # tokens
    config.data.context_length = 48  # tokens a caption, BOS and EOS included
    config.data.threads = 16  # readers of the input pipeline: videos take long to decode
    config.data.video.frames = 8  # of a clip
    config.model.embed_dim = 512  # width of the embedding that both towers share
    config.model.image.kind = "vit"  # the tower of each frame
    config.model.image.width = 768  # channels of the token features
    config.model.image.depth = 12  # blocks
    config.model.image.heads = 12  # attention heads
    config.model.image.patch = 16  # pixels a side of one token
    config.model.video.depth = 4  # blocks over the frames
    config.model.video.heads = 8  # attention heads
    config.model.text.width = 512  # channels of the token features
    config.model.text.depth = 12  # transformer blocks
    config.model.text.heads = 8  # attention heads
    config.model.dtype = "bfloat16"  # of the computation; parameters stay float32
    config.model.remat = "dots"  # made again in the backward pass: all but matrix products
    config.model.scan_layers = True  # a tower's blocks are compiled once, as a loop
    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.cla.enabled = True  # the local attention loss
    config.objective.cla.width = 256  # of the cross-modal layers
    config.objective.bank_size = 65_536  # slots of the memory bank
    config.objective.groups = 64  # parts of the batch that choose rows of (b) and CLA apart
    config.optim.lr = 5e-4  # peak learning rate of AdamW
    config.optim.cross_lr = 5e-4  # the same for CLA's cross-modal layers
    config.optim.warmup_steps = 2000  # steps of linear warm-up
    config.train.batch_size = 2048  # pairs a step, over all devices
    config.train.steps = 50_000  # updates in all: ten passes over 10 million pairs
    config.train.eval_every = 2500  # steps between two evaluations
    config.train.save_every = 2500  # steps between two checkpoints
    config.train.keep_best = "v2t_R@1"  # the checkpoint kept beside the newest
    config.eval.tasks = ("retrieval", "halftrue")  # what is evaluated
    config.eval.batch_size = 64  # rows encoded at a time
    return config
