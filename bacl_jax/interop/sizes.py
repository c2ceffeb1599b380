"""What a published tower is: the fields of config.model.<modality> that describe it, told by its tensors and its config file."""

import math
from collections.abc import Mapping
from typing import Any

from bacl_jax.config import Config, ConfigError
from bacl_jax.interop.files import Stored, WeightsError
from bacl_jax.interop.layouts import Layout, Modality
from bacl_jax.models.pixels import PIXELS

ACTIVATIONS = {  # Hugging Face's name -> ours
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
EPSILON = {"clip": 1e-5, "siglip": 1e-6, "bert": 1e-12}  # of every norm, fixed in our towers
_HF_DEFAULTS = {  # what a config.json leaves out
    ("clip", "image"): (12, "quick_gelu"),
    ("clip", "text"): (8, "quick_gelu"),
    ("siglip", "image"): (12, "gelu_pytorch_tanh"),
    ("siglip", "text"): (12, "gelu_pytorch_tanh"),
    ("bert", "text"): (12, "gelu"),
}
_OPEN_CLIP: dict[tuple[str, str], dict[str, Any]] = {  # fields of open_clip that change what a tower computes, and the value that ours has
    ("clip", "vision_cfg"): {
        "pool_type": "tok",
        "no_ln_pre": False,
        "final_ln_after_pool": False,
        "attentional_pool": False,
        "ls_init_value": None,
    },
    ("clip", "text_cfg"): {
        "pool_type": "argmax",
        "no_causal_mask": False,
        "embed_cls": False,
        "hf_model_name": None,
        "ls_init_value": None,
    },
    ("siglip", "vision_cfg"): {"timm_pool": "map", "timm_proj": "none"},
    ("siglip", "text_cfg"): {"pool_type": "last", "no_causal_mask": True, "proj_bias": True, "embed_cls": False, "hf_model_name": None},
}
_OPEN_CLIP_DEFAULTS = {  # what open_clip takes where a field is left out, if that is not what ours has
    "siglip": {"timm_pool": "avg", "timm_proj": "linear", "pool_type": "argmax", "no_causal_mask": False, "proj_bias": False},
    "clip": {},
}
_OPEN_CLIP_EPSILON = 1e-5  # where norm_kwargs leave it out


def sizes(stored: Stored, layout: Layout, modality: Modality) -> dict[str, Any]:
    """Name of a field below config.model -> what it must be, such as {"image.width": 768, "embed_dim": 512}.

    Heads, activation and pixels are told by config files alone; without one, and for a tower of timm's, they are left out.
    WeightsError where the tower computes something that ours does not.
    """
    rows = layout.all_rows(stored.shapes)
    shape = {path: stored.shapes.get(row.theirs, ()) for row in rows.get(modality, []) for path in row.ours}
    first, wide = ("stem/kernel", 0) if modality == "image" else ("embedding", 1)
    linear = "blocks/0/mlp/up/kernel"
    if modality not in rows or len(shape[first]) != (4 if modality == "image" else 2) or len(shape[linear]) != 2 or 0 in shape[first]:
        raise WeightsError(f"{stored.place}: has no {modality} tower of the form that {layout.source} gives {layout.kind}")
    width = shape[first][wide]
    found: dict[str, Any] = {"kind": layout.kind, "width": width, "depth": layout.depth(modality, stored.shapes)}
    found["mlp_ratio"] = shape[linear][0] / width
    if modality == "image":
        found["patch"] = shape[first][3]
        if stored.pixels is not None:
            found["pixels"] = _pixels(stored)
    if stored.config:
        found |= _from_config(stored, layout, modality, width)
    named = {f"{modality}.{name}": value for name, value in found.items()}
    if len(shape.get("head/kernel", ())) == 2:  # one that is missing, or another one, is told when it is read
        named["embed_dim"] = shape["head/kernel"][0 if layout.source == "Hugging Face" or layout.kind == "siglip" else 1]
    elif layout.kind == "siglip":
        named["embed_dim"] = width
    return named


def check(config: Config, stored: Stored, layout: Layout, modality: Modality) -> None:
    """ConfigError, with all flags that make it fit, where config.model describes another tower than the stored one."""
    wanted = sizes(stored, layout, modality)
    tower = getattr(config.model, modality)
    own = {name: config.model.embed_dim if name == "embed_dim" else getattr(tower, name.partition(".")[2]) for name in wanted}
    wide = wanted[f"{modality}.width"]
    differ = [
        name
        for name, value in wanted.items()
        if (round(own[name] * wide) != round(value * wide) if name.endswith("mlp_ratio") else own[name] != value)
    ]
    if differ:
        found = ", ".join(f"{name} = {own[name]}" for name in differ)
        flags = " ".join(f"--config.model.{name}={wanted[name]}" for name in differ)
        raise ConfigError(
            f"config.model.{modality}.pretrained = {stored.place!r} is another tower than config.model ({found}): set {flags}"
        )


def _pixels(stored: Stored) -> str:
    assert stored.pixels is not None
    for name, (mean, deviation) in PIXELS.items():
        ours, theirs = (*mean, *deviation), (*stored.pixels[0], *stored.pixels[1])
        if len(ours) == len(theirs) and all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(ours, theirs, strict=True)):
            return name
    raise WeightsError(f"{stored.place}: wants pixels of mean {stored.pixels[0]} and deviation {stored.pixels[1]}; known: {PIXELS}")


def _from_config(stored: Stored, layout: Layout, modality: Modality, width: int) -> dict[str, Any]:
    if layout.source == "open_clip":
        return _from_open_clip(stored, layout, modality, width)
    name = "vision_config" if modality == "image" else "text_config"
    tower = _group(stored, stored.config, name) | _group(stored, stored.config, f"{name}_dict") or dict(stored.config)
    heads, activation = _HF_DEFAULTS[layout.kind, modality]
    _check_epsilon(stored, layout, "layer_norm_eps", tower.get("layer_norm_eps", EPSILON[layout.kind]))
    if layout.kind == "bert" and tower.get("position_embedding_type", "absolute") != "absolute":
        raise WeightsError(f"{stored.place}: position_embedding_type = {tower['position_embedding_type']!r}; only absolute is known")
    activation = tower.get("hidden_act", activation)
    if activation not in list(ACTIVATIONS):  # whatever JSON holds may be compared
        raise WeightsError(f"{stored.place}: hidden_act = {activation!r}; known: {', '.join(ACTIVATIONS)}")
    heads = _whole(stored, "num_attention_heads", tower.get("num_attention_heads", heads))
    return {"heads": heads, "activation": ACTIVATIONS[activation]}


def _from_open_clip(stored: Stored, layout: Layout, modality: Modality, width: int) -> dict[str, Any]:
    model = _group(stored, stored.config, "model_cfg") or dict(stored.config)
    name = "vision_cfg" if modality == "image" else "text_cfg"
    tower = _group(stored, model, name)
    for field, ours in _OPEN_CLIP[layout.kind, name].items():
        if (value := tower.get(field, _OPEN_CLIP_DEFAULTS[layout.kind].get(field, ours))) != ours:
            raise WeightsError(f"{stored.place}: {name}.{field} = {value!r}; known: {ours!r}")
    if layout.kind == "siglip" and modality == "image":
        return {}  # timm's towers: heads and activation are in timm's code, not in a file
    _check_epsilon(stored, layout, f"{name}.norm_kwargs.eps", _group(stored, tower, "norm_kwargs").get("eps", _OPEN_CLIP_EPSILON))
    tanh = _group(stored, tower, "act_kwargs").get("approximate") == "tanh"
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu_tanh" if tanh else "gelu"
    if modality == "text":
        heads = _whole(stored, "text_cfg.heads", tower.get("heads", 8))
    else:
        heads = width // _whole(stored, "vision_cfg.head_width", tower.get("head_width", 64))
    return {"heads": heads, "activation": activation}


def _check_epsilon(stored: Stored, layout: Layout, field: str, epsilon: Any) -> None:
    if epsilon != EPSILON[layout.kind]:
        raise WeightsError(f"{stored.place}: its norms add {epsilon} ({field}), those of our {layout.kind} {EPSILON[layout.kind]}")


def _whole(stored: Stored, field: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise WeightsError(f"{stored.place}: {field} = {value!r} of its config file must be a whole number, 1 or more")
    return value


def _group(stored: Stored, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise WeightsError(f"{stored.place}: {name} of its config file is no object; fetch it again")
    return found
