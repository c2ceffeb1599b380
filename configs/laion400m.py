"""What the three runs on LAION-400M share: CLIP's recipe (arXiv 2103.00020, tables 18 to 20) at batch 32,768. No run of its own.

The data are tar shards as img2dataset writes them, indexed by `launch.index`: `--config.data.path='shards/{00000..41407}.tar'` names
them. Captions become CLIP's own tokens: `--config.data.tokenizer_path=.../bpe_simple_vocab_16e6.txt.gz`, a file that the packages of
open_clip and OpenAI's CLIP hold. `launch.compile` reads no data and no vocabulary.
"""

from ml_collections import ConfigDict

from configs import base

PAIRS, EPOCHS = 400_000_000, 32


def steps(batch_size: int) -> int:
    """Updates in EPOCHS passes over PAIRS pairs."""
    return PAIRS * EPOCHS // batch_size


def get_config() -> ConfigDict:
    """ViT-B/16 with InfoNCE; the files beside this one change the towers and the objective."""
    config = base.get_config()
    config.data.kind = "webdataset"  # reads data.path, which must be set to train
    config.data.validation_rows = 10_000  # kept out of training for tuning
    config.data.image_size = 224  # pixels a side that the model sees
    config.data.tokenizer = "file"  # CLIP's own byte pairs, not trained here
    config.data.tokenizer_path = "bpe_simple_vocab_16e6.txt.gz"  # CLIP's file, which open_clip ships; where it lies on each machine
    config.data.vocab_size = 49_408  # tokens of that file
    config.data.context_length = 77  # tokens a caption, BOS and EOS included; longer captions are cut
    config.data.on_error = "skip"  # bad rows are left out, counted and logged
    config.data.augment_scale = 0.1  # the crop's side lies in [0.9, 1.1] of the picture's
    config.data.augment_shift = 0.05  # the crop's centre moves by up to this share of the side

    config.model.embed_dim = 512  # width of the embedding that both towers share
    config.model.image.kind = "vit"  # vision transformer
    config.model.image.width = 768  # channels of the token features
    config.model.image.depth = 12  # blocks
    config.model.image.heads = 12  # attention heads
    config.model.image.patch = 16  # pixels a side of one token
    config.model.text.width = 512  # channels of the token features
    config.model.text.depth = 12  # transformer blocks
    config.model.text.heads = 8  # attention heads
    config.model.dtype = "bfloat16"  # of the computation; parameters stay float32
    config.model.remat = "full"  # blocks are made again in the backward pass
    config.model.scan_layers = True  # a tower's blocks are compiled once, as a loop

    config.objective.init_scale = 14.3  # inverse temperature at the start: 1 / 0.07
    config.objective.bank_size = 65_536  # slots of the memory bank; any size that divides over the devices
    config.objective.groups = 256  # parts of the batch that choose rows of (b) and CLA apart: the same on any mesh of up to 256 devices

    config.optim.lr = 5e-4  # peak learning rate of AdamW
    config.optim.cross_lr = 5e-4  # the same for CLA's cross-modal layers
    config.optim.warmup_steps = 2000  # steps of linear warm-up; a cosine follows
    config.optim.weight_decay = 0.2  # decoupled, on matrices alone

    config.train.batch_size = 32_768  # pairs a step, over all devices
    config.train.steps = steps(32_768)  # 32 passes over 400 million pairs
    config.train.log_every = 50  # steps between two lines of metrics.jsonl
    config.train.eval_every = 5000  # steps between two evaluations
    config.train.save_every = 5000  # steps between two checkpoints
    config.train.save_minutes = 30.0  # minutes after which a checkpoint is written with the next logged line
    return config


def bacl(config: ConfigDict) -> ConfigDict:
    """BNS and CLA on top, in shares that add at most 8 % to the FLOPs of a step (benchmarks/bacl_over_infonce.py)."""
    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.bns.drawn_share = 0.25  # channel (b): share of rows, by score, whose drawn bank caption is re-encoded as a column
    config.objective.cla.enabled = True  # the local attention loss
    config.objective.cla.layers = 4  # cross-modal layers, as in the paper
    config.objective.cla.width = 512  # of the cross-modal layers
    config.objective.cla.heads = 8  # attention heads
    config.objective.cla.row_share = 0.0625  # share of the rows that CLA sees each step
    return config
