"""Which published tensor is which parameter of ours, in both directions: one table for each form of a tower.

A path of ours is below towers/<modality>/, as in blocks/0/mlp/up/kernel. Reading and writing use the same rows, so that what is read and
written again is equal in every bit.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

Modality = Literal["image", "text"]
Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Form:
    """How one stored array becomes arrays of ours, and back. Neither direction computes anything."""

    read: Callable[[np.ndarray], list[np.ndarray]]
    write: Callable[[Arrays], np.ndarray]


SAME = Form(lambda a: [a], lambda ours: ours[0])
LINEAR = Form(lambda a: [a.T], lambda ours: ours[0].T)  # [out, in]: torch's order
PATCHES = Form(lambda a: [a.transpose(2, 3, 1, 0)], lambda ours: ours[0].transpose(3, 2, 0, 1))  # [out, in, height, width]
FIRST = Form(lambda a: [a[0]], lambda ours: ours[0][None])
TOKEN = Form(lambda a: [a.reshape(-1)], lambda ours: ours[0].reshape(1, 1, -1))
SCALAR = Form(lambda a: [a.reshape(())], lambda ours: ours[0])


def stacked(count: int) -> Form:
    """Several linear maps, or their biases, one below the other."""
    return Form(lambda a: [part.T for part in np.split(a, count)], lambda ours: np.concatenate([part.T for part in ours]))


@dataclasses.dataclass(frozen=True)
class Row:
    """A published tensor, and the parameters of ours that are in it."""

    theirs: str
    ours: tuple[str, ...]
    form: Form


@dataclasses.dataclass(frozen=True)
class Layout:
    """The published form of a pair of towers, or of one.

    kind:    model.<modality>.kind of the towers. source: who publishes so.
    rows:    of the modality with so many blocks. depth: the blocks that names tell; 0 where the tower is not there.
    ignored: names that hold nothing to be learnt, or nothing that a tower needs.
    extra:   temperature and bias of the logits: path of ours to name.
    """

    kind: str
    source: str
    rows: Callable[[Modality, int], list[Row]]
    blocks: Mapping[Modality, str]
    ignored: str
    extra: Mapping[str, str]

    def depth(self, modality: Modality, names: Mapping[str, object]) -> int:
        if modality not in self.blocks:
            return 0
        found = (re.match(re.escape(self.blocks[modality]) + r"(\d{1,4})\.", name) for name in names)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    def all_rows(self, names: Mapping[str, object]) -> dict[Modality, list[Row]]:
        """The rows of each tower that is there."""
        return {modality: self.rows(modality, depth) for modality in self.blocks if (depth := self.depth(modality, names))}


def _linear(theirs: str, ours: str) -> Iterator[Row]:
    yield Row(f"{theirs}.weight", (f"{ours}/kernel",), LINEAR)
    yield Row(f"{theirs}.bias", (f"{ours}/bias",), SAME)


def _norm(theirs: str, ours: str) -> Iterator[Row]:
    yield Row(f"{theirs}.weight", (f"{ours}/scale",), SAME)
    yield Row(f"{theirs}.bias", (f"{ours}/bias",), SAME)


def _in_projection(theirs: str, ours: str, parts: Sequence[str], weight: str = "weight", bias: str = "bias") -> Iterator[Row]:
    yield Row(f"{theirs}{weight}", tuple(f"{ours}/{part}/kernel" for part in parts), stacked(len(parts)))
    yield Row(f"{theirs}{bias}", tuple(f"{ours}/{part}/bias" for part in parts), stacked(len(parts)))


QKV = ("query", "key", "value")


def _hf_block(theirs: str, ours: str) -> Iterator[Row]:
    yield from _norm(f"{theirs}.layer_norm1", f"{ours}/norm_self")
    for part, name in (*zip(QKV, "qkv", strict=True), ("out", "out")):
        yield from _linear(f"{theirs}.self_attn.{name}_proj", f"{ours}/self_attention/{part}")
    yield from _norm(f"{theirs}.layer_norm2", f"{ours}/norm_mlp")
    yield from _linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up")
    yield from _linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")


def _torch_attention(theirs: str, ours: str) -> Iterator[Row]:
    """torch.nn.MultiheadAttention."""
    yield from _in_projection(f"{theirs}.in_proj_", ours, QKV)
    yield from _linear(f"{theirs}.out_proj", f"{ours}/out")


def _open_clip_block(theirs: str, ours: str) -> Iterator[Row]:
    yield from _norm(f"{theirs}.ln_1", f"{ours}/norm_self")
    yield from _torch_attention(f"{theirs}.attn", f"{ours}/self_attention")
    yield from _norm(f"{theirs}.ln_2", f"{ours}/norm_mlp")
    yield from _linear(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up")
    yield from _linear(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down")


def _timm_block(theirs: str, ours: str) -> Iterator[Row]:
    yield from _norm(f"{theirs}.norm1", f"{ours}/norm_self")
    yield from _in_projection(f"{theirs}.attn.qkv.", f"{ours}/self_attention", QKV)
    yield from _linear(f"{theirs}.attn.proj", f"{ours}/self_attention/out")
    yield from _norm(f"{theirs}.norm2", f"{ours}/norm_mlp")
    yield from _linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up")
    yield from _linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")


def _bert_block(theirs: str, ours: str) -> Iterator[Row]:
    for part in QKV:
        yield from _linear(f"{theirs}.attention.self.{part}", f"{ours}/self_attention/{part}")
    yield from _linear(f"{theirs}.attention.output.dense", f"{ours}/self_attention/out")
    yield from _norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/norm_self")
    yield from _linear(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
    yield from _linear(f"{theirs}.output.dense", f"{ours}/mlp/down")
    yield from _norm(f"{theirs}.output.LayerNorm", f"{ours}/norm_mlp")


def _blocks(block: Callable[[str, str], Iterator[Row]], theirs: str, depth: int) -> Iterator[Row]:
    for i in range(depth):
        yield from block(f"{theirs}{i}", f"blocks/{i}")


HF_BLOCKS: Mapping[Modality, str] = {"image": "vision_model.encoder.layers.", "text": "text_model.encoder.layers."}


def _hf(modality: Modality, depth: int) -> Iterator[Row]:
    """What CLIP and SigLIP share in Hugging Face's form."""
    if modality == "image":
        yield Row("vision_model.embeddings.patch_embedding.weight", ("stem/kernel",), PATCHES)
        yield Row("vision_model.embeddings.position_embedding.weight", ("positions",), SAME)
        yield from _norm("vision_model.post_layernorm", "norm")
    else:
        yield Row("text_model.embeddings.token_embedding.weight", ("embedding",), SAME)
        yield Row("text_model.embeddings.position_embedding.weight", ("positions",), SAME)
        yield from _norm("text_model.final_layer_norm", "norm")
    yield from _blocks(_hf_block, HF_BLOCKS[modality], depth)


def _hf_clip(modality: Modality, depth: int) -> list[Row]:
    rows = list(_hf(modality, depth))
    if modality == "text":
        return [*rows, Row("text_projection.weight", ("head/kernel",), LINEAR)]
    return [
        *rows,
        Row("vision_model.embeddings.class_embedding", ("class_token",), SAME),
        *_norm("vision_model.pre_layrnorm", "norm_before"),
        Row("visual_projection.weight", ("head/kernel",), LINEAR),
    ]


def _hf_siglip(modality: Modality, depth: int) -> list[Row]:
    rows = list(_hf(modality, depth))
    if modality == "text":
        return [*rows, *_linear("text_model.head", "head")]
    return [
        *rows,
        Row("vision_model.embeddings.patch_embedding.bias", ("stem/bias",), SAME),
        Row("vision_model.head.probe", ("query",), TOKEN),
        *_torch_attention("vision_model.head.attention", "pool_attention"),
        *_norm("vision_model.head.layernorm", "norm_pool"),
        *_linear("vision_model.head.mlp.fc1", "pool_mlp/up"),
        *_linear("vision_model.head.mlp.fc2", "pool_mlp/down"),
    ]


def _open_clip_text(prefix: str, depth: int) -> Iterator[Row]:
    yield Row(f"{prefix}token_embedding.weight", ("embedding",), SAME)
    yield Row(f"{prefix}positional_embedding", ("positions",), SAME)
    yield from _blocks(_open_clip_block, f"{prefix}transformer.resblocks.", depth)
    yield from _norm(f"{prefix}ln_final", "norm")


def _open_clip(prefix: str) -> Callable[[Modality, int], list[Row]]:
    def rows(modality: Modality, depth: int) -> list[Row]:
        if modality == "text":
            return [*_open_clip_text(prefix, depth), Row(f"{prefix}text_projection", ("head/kernel",), SAME)]
        return [
            Row("visual.class_embedding", ("class_token",), SAME),
            Row("visual.positional_embedding", ("positions",), SAME),
            Row("visual.conv1.weight", ("stem/kernel",), PATCHES),
            *_norm("visual.ln_pre", "norm_before"),
            *_blocks(_open_clip_block, "visual.transformer.resblocks.", depth),
            *_norm("visual.ln_post", "norm"),
            Row("visual.proj", ("head/kernel",), SAME),
        ]

    return rows


def _open_clip_siglip(modality: Modality, depth: int) -> list[Row]:
    if modality == "text":
        return [*_open_clip_text("text.", depth), *_linear("text.text_projection", "head")]
    trunk = "visual.trunk."
    return [
        Row(f"{trunk}patch_embed.proj.weight", ("stem/kernel",), PATCHES),
        Row(f"{trunk}patch_embed.proj.bias", ("stem/bias",), SAME),
        Row(f"{trunk}pos_embed", ("positions",), FIRST),
        *_blocks(_timm_block, f"{trunk}blocks.", depth),
        *_norm(f"{trunk}norm", "norm"),
        Row(f"{trunk}attn_pool.latent", ("query",), TOKEN),
        *_linear(f"{trunk}attn_pool.q", "pool_attention/query"),
        *_in_projection(f"{trunk}attn_pool.kv.", "pool_attention", QKV[1:]),
        *_linear(f"{trunk}attn_pool.proj", "pool_attention/out"),
        *_norm(f"{trunk}attn_pool.norm", "norm_pool"),
        *_linear(f"{trunk}attn_pool.mlp.fc1", "pool_mlp/up"),
        *_linear(f"{trunk}attn_pool.mlp.fc2", "pool_mlp/down"),
    ]


def _bert(prefix: str) -> Callable[[Modality, int], list[Row]]:
    def rows(_: Modality, depth: int) -> list[Row]:
        return [
            Row(f"{prefix}embeddings.word_embeddings.weight", ("embedding",), SAME),
            Row(f"{prefix}embeddings.position_embeddings.weight", ("positions",), SAME),
            Row(f"{prefix}embeddings.token_type_embeddings.weight", ("segment",), SAME),
            *_norm(f"{prefix}embeddings.LayerNorm", "norm_embedding"),
            *_blocks(_bert_block, f"{prefix}encoder.layer.", depth),
        ]

    return rows


_SCALE = {"log_scale": "logit_scale"}
_SCALE_AND_BIAS = {**_SCALE, "bias": "logit_bias"}
_POSITION_IDS = r"(.*\.)?position_ids"
_OPENAI = r"input_resolution|context_length|vocab_size|(.*\.)?attn_mask"  # in files of OpenAI's own form

HF_CLIP = Layout("clip", "Hugging Face", _hf_clip, HF_BLOCKS, _POSITION_IDS, _SCALE)
HF_SIGLIP = Layout("siglip", "Hugging Face", _hf_siglip, HF_BLOCKS, _POSITION_IDS, _SCALE_AND_BIAS)
OPEN_CLIP = Layout(
    "clip",
    "open_clip",
    _open_clip(""),
    {"image": "visual.transformer.resblocks.", "text": "transformer.resblocks."},
    _OPENAI,
    _SCALE_AND_BIAS,
)
OPEN_CLIP_CUSTOM = dataclasses.replace(
    OPEN_CLIP,
    rows=_open_clip("text."),
    blocks={"image": "visual.transformer.resblocks.", "text": "text.transformer.resblocks."},
)
OPEN_CLIP_SIGLIP = Layout(
    "siglip",
    "open_clip",
    _open_clip_siglip,
    {"image": "visual.trunk.blocks.", "text": "text.transformer.resblocks."},
    _OPENAI,
    _SCALE_AND_BIAS,
)
_UNUSED_BERT = rf"{_POSITION_IDS}|(bert\.)?pooler\..*|cls\..*"
BERT = Layout("bert", "Hugging Face", _bert(""), {"text": "encoder.layer."}, _UNUSED_BERT, {})
BERT_INSIDE = Layout("bert", "Hugging Face", _bert("bert."), {"text": "bert.encoder.layer."}, _UNUSED_BERT, {})

_BY_NAME: tuple[tuple[str, Layout], ...] = (  # a tensor that only this layout has; the first that is there decides
    ("vision_model.head.probe", HF_SIGLIP),
    ("text_model.head.weight", HF_SIGLIP),
    ("vision_model.embeddings.class_embedding", HF_CLIP),
    ("text_model.embeddings.token_embedding.weight", HF_CLIP),
    ("visual.trunk.attn_pool.latent", OPEN_CLIP_SIGLIP),
    ("text.token_embedding.weight", OPEN_CLIP_CUSTOM),
    ("visual.class_embedding", OPEN_CLIP),
    ("embeddings.word_embeddings.weight", BERT),
    ("bert.embeddings.word_embeddings.weight", BERT_INSIDE),
)


def recognise(names: Mapping[str, object]) -> Layout | None:
    """The layout that tensors of these names have; None where it is none of those above."""
    return next((layout for name, layout in _BY_NAME if name in names), None)
