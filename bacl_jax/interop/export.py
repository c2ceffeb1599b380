"""A trained model as transformers' CLIPModel or as open_clip loads it: weights, config, tokenizer and model card in a folder."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from safetensors.numpy import save_file

from bacl_jax.config import Config, ConfigError
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.interop.layouts import HF_CLIP, OPEN_CLIP, Layout, Modality
from bacl_jax.models.pixels import PIXELS
from bacl_jax.paths import named
from bacl_jax.rules import check_pictures

Target = Literal["hf", "open_clip"]
LAYOUTS: dict[Target, Layout] = {"hf": HF_CLIP, "open_clip": OPEN_CLIP}
WEIGHTS: dict[Target, str] = {"hf": "model.safetensors", "open_clip": "open_clip_model.safetensors"}
_HIDDEN_ACT = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
_OLD_EOS = 2  # transformers takes this eos_token_id for a mistake of old files and pools at the largest id
_LACKS = {
    "image": "CLIPModel's image tower is a vision transformer with a class token",
    "text": "CLIPModel's text tower is causal and pools at the end of the text",
}


def check(config: Config, tokenizer: Tokenizer, target: Target) -> None:
    """ConfigError that names the part of the model for which the target has no place."""
    check_pictures(config, "an export: pictures and texts are what the targets know")
    model = config.model
    for modality, why in _LACKS.items():
        if (kind := getattr(model, modality).kind) != "clip":
            raise ConfigError(
                f"config.model.{modality}.kind = {kind!r}: {why}, and this tower is another; "
                f"train with --config.model.{modality}.kind=clip, as configs/emoji_vit_bacl.py does"
            )
    if tokenizer.bos_id is None:
        raise ConfigError(
            f"config.data.tokenizer = {config.data.tokenizer!r}: no token begins a text, as in CLIP; "
            "train with --config.data.tokenizer=clip"
        )
    last = tokenizer.vocab_size - 1
    if tokenizer.eos_id != last if target == "open_clip" else tokenizer.eos_id == _OLD_EOS:
        raise ConfigError(
            f"config.data.tokenizer = {config.data.tokenizer!r}: the end of a text has the id {tokenizer.eos_id}, where CLIP's has the "
            f"largest, here {last}, by which {target} finds it. Train with --config.data.tokenizer=clip"
        )
    if target == "open_clip" and (model.image.activation != model.text.activation or model.image.activation == "gelu_tanh"):
        raise ConfigError(
            f"config.model.image.activation = {model.image.activation!r}, config.model.text.activation = {model.text.activation!r}: "
            "open_clip's CLIP has one for both, gelu or quick_gelu; train with one of these"
        )


def tensors(params: Any, target: Target) -> dict[str, np.ndarray]:
    """The target's tensors by name; reading them again gives the same bits."""
    ours = {path: np.asarray(leaf) for path, leaf in named({"towers": params["towers"]})}
    layout, found = LAYOUTS[target], {}
    modalities: tuple[Modality, ...] = ("image", "text")
    for modality in modalities:
        depth = len(params["towers"][modality]["blocks"])
        for row in layout.rows(modality, depth):
            found[row.theirs] = row.form.write([ours[f"towers/{modality}/{path}"] for path in row.ours])
    found[layout.extra["log_scale"]] = np.asarray(params["log_scale"])
    return {name: np.ascontiguousarray(array) if array.ndim else array for name, array in found.items()}


def write(
    out: str | os.PathLike[str], config: Config, tokenizer: Tokenizer, params: Any, target: Target, card: str, *, replace: bool = False
) -> Path:
    """Writes the folder `out`, all of it or nothing. ConfigError where it is there already, unless `replace`, and as `check`."""
    check(config, tokenizer, target)
    out = Path(out)
    if out.exists() and not replace:
        raise ConfigError(f"--out={out} is there already; name another folder, or replace it with --replace")
    made = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        made.mkdir(parents=True)
        save_file(tensors(params, target), made / WEIGHTS[target], metadata={"format": "pt"})
        for name, content in _files(config, tokenizer, target).items():
            (made / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (made / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        made.replace(out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return out


def _files(config: Config, tokenizer: Tokenizer, target: Target) -> dict[str, Any]:
    own = {"config.json": _hf_config, "open_clip_config.json": _open_clip_config}
    name = "config.json" if target == "hf" else "open_clip_config.json"
    return {name: own[name](config, tokenizer), "preprocessor_config.json": _preprocessor(config)} | _tokenizer_files(tokenizer)


def _hf_config(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    model = config.model

    def tower(modality: Modality) -> dict[str, Any]:
        one = getattr(model, modality)
        return {
            "hidden_size": one.width,
            "intermediate_size": round(one.width * one.mlp_ratio),
            "num_hidden_layers": one.depth,
            "num_attention_heads": one.heads,
            "hidden_act": _HIDDEN_ACT[one.activation],
            "layer_norm_eps": 1e-5,
            "projection_dim": model.embed_dim,
        }

    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.eos_id}
    text = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": config.data.context_length, "model_type": "clip_text_model"}
    image = {"image_size": config.data.image_size, "patch_size": model.image.patch, "model_type": "clip_vision_model"}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model.embed_dim,
        "logit_scale_init_value": math.log(config.objective.init_scale),
        "text_config": tower("text") | text | ids,
        "vision_config": tower("image") | image,
        "torch_dtype": "float32",
    }


def _ratio(tower: Any) -> float:
    """A ratio that gives the hidden width where open_clip rounds down."""
    return math.nextafter(round(tower.width * tower.mlp_ratio) / tower.width, math.inf)


def _open_clip_config(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    image, text = config.model.image, config.model.text
    mean, deviation = PIXELS[image.pixels]
    return {
        "model_cfg": {
            "embed_dim": config.model.embed_dim,
            "quick_gelu": image.activation == "quick_gelu",
            "vision_cfg": {
                "image_size": config.data.image_size,
                "patch_size": image.patch,
                "width": image.width,
                "layers": image.depth,
                "head_width": image.width // image.heads,
                "mlp_ratio": _ratio(image),
            },
            "text_cfg": {
                "context_length": config.data.context_length,
                "vocab_size": tokenizer.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.depth,
                "mlp_ratio": _ratio(text),
                "hf_tokenizer_name": "tokenizer of this folder",
                "tokenizer_kwargs": {"clean": "whitespace"},
            },
        },
        "preprocess_cfg": {
            "size": config.data.image_size,
            "mean": list(mean),
            "std": list(deviation),
            "interpolation": config.data.resample,
            "resize_mode": "shortest",
        },
    }


def _preprocessor(config: Config) -> dict[str, Any]:
    """The centre square, scaled: what our evaluation sees."""
    size, (mean, deviation) = config.data.image_size, PIXELS[config.model.image.pixels]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": _RESAMPLE[config.data.resample],
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(deviation),
    }


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, Mapping[str, Any]]:
    """tokenizer.json and what transformers wants beside it. Padding is by the end of the text, as in CLIP's own."""
    stored = {key: value for key, value in tokenizer.to_json().items() if key in _TOKENIZER_FIELDS}
    stored |= {"truncation": None, "padding": None}
    assert tokenizer.bos_id is not None
    start, end = tokenizer.tokens([tokenizer.bos_id, tokenizer.eos_id])
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    return {
        "tokenizer.json": stored,
        "tokenizer_config.json": special | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tokenizer.context_length},
        "special_tokens_map.json": special,
    }


_TOKENIZER_FIELDS = tuple(json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str()))
