"""BACL from CLIP's published weights (OpenAI's ViT-B/32) on pairs of your own: `--config.data.path=pairs.csv` names the manifest.

The folder of the weights, as Hugging Face publishes it, is `clip-vit-base-patch32` where the run starts; `model.image.pretrained`,
`model.text.pretrained` and `data.tokenizer_path` name another. The ways to tune are in docs/finetune.md.
"""

from ml_collections import ConfigDict

from configs import base

FOLDER = "clip-vit-base-patch32"  # model.safetensors, config.json and tokenizer.json of the published model


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.kind = "manifest"  # reads data.path, which must be set
    config.data.image_size = 224  # pixels a side that the model sees
    config.data.tokenizer = "file"  # the one that belongs to the text tower
    config.data.tokenizer_path = FOLDER + "/tokenizer.json"  # None: no file is read
    config.data.vocab_size = 49_408  # tokens of that file
    config.data.context_length = 77  # tokens a caption, BOS and EOS included; longer captions are cut
    config.data.resample = "bicubic"  # as CLIP's own preprocessing

    config.model.embed_dim = 512  # width of the embedding that both towers share
    config.model.image.kind = "clip"  # class token, a norm before the blocks
    config.model.image.width = 768  # channels of the token features
    config.model.image.depth = 12  # blocks
    config.model.image.heads = 12  # attention heads
    config.model.image.patch = 32  # pixels a side of one token
    config.model.image.activation = "quick_gelu"  # OpenAI's weights have it, LAION's have gelu
    config.model.image.pixels = "clip"  # mean and deviation by which pixels are normalised
    config.model.image.pretrained = FOLDER  # None: random
    config.model.text.kind = "clip"  # causal, pools the end of the text
    config.model.text.width = 512  # channels of the token features
    config.model.text.depth = 12  # blocks
    config.model.text.heads = 8  # attention heads
    config.model.text.activation = "quick_gelu"  # as the image tower
    config.model.text.pretrained = FOLDER  # the same place, so the temperature is read from there; None: random
    config.model.dtype = "bfloat16"  # of the computation; parameters stay float32

    config.objective.bns.enabled = True  # the sampler of hard negatives
    config.objective.cla.enabled = True  # the local attention loss
    config.objective.cla.width = 512  # of the cross-modal layers
    config.objective.cla.heads = 8  # attention heads

    config.optim.lr = 1e-5  # peak learning rate of the towers, which have learned already
    config.optim.warmup_steps = 100  # steps of linear warm-up; a cosine follows
    config.optim.weight_decay = 0.1  # decoupled, on matrices alone
    return config
