"""What launch.export writes, loaded by transformers and by open_clip: equal ids, embeddings, logits and retrieval."""

import jax
import jax.numpy as jnp
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPProcessor

from bacl_jax.config import from_config_dict
from bacl_jax.data import transforms
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.interop import export
from bacl_jax.models import Model
from benchmarks.exported import recalls
from benchmarks.exported import transformers as by_transformers
from configs import emoji_vit_bacl

CAPTIONS = [
    *(f"{colour} {shape} on a {ground}" for colour in ("red", "blue") for shape in ("circle", "square") for ground in ("hill", "sea")),
    *("a naïve zebra's tail", "", "x" * 90, "crème brûlée: 3 eggs, £4!", "日本 flag"),
]


@pytest.fixture(scope="module")
def trained():
    """(config, tokenizer, parameters all of which are at random)."""
    settings = emoji_vit_bacl.get_config()
    settings.model.image.update(width=48, depth=2)
    settings.model.text.update(width=32, depth=2)
    settings.data.vocab_size = 560
    config = from_config_dict(settings)
    tokenizer = Tokenizer.train(CAPTIONS, config.data)
    leaves, structure = jax.tree.flatten(jax.jit(Model(config, tokenizer.vocab_size).init)(jax.random.key(0)))
    r = np.random.default_rng(0)
    params = jax.tree.unflatten(structure, [np.asarray(x) + 0.05 * r.standard_normal(x.shape, np.float32) for x in leaves])
    return config, tokenizer, params


@pytest.fixture(scope="module")
def folders(trained, tmp_path_factory):
    place = tmp_path_factory.mktemp("exported")
    return {target: export.write(place / target, *trained, target, "card") for target in ("hf", "open_clip")}


@pytest.fixture(scope="module")
def ours(trained):
    """(pictures, uint8 batch, embeddings of both sides, logits)."""
    config, tokenizer, params = trained
    r = np.random.default_rng(1)
    small = [Image.fromarray(r.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in CAPTIONS]
    pictures = [one.resize(size) for one, size in zip(small, [(72, 72), (64, 80), (96, 64), (48, 32), (32, 32)] * 3, strict=False)]
    images = np.stack([transforms.crop(np.asarray(one), config.data.image_size, resample=config.data.resample) for one in pictures])
    model = Model(config, tokenizer.vocab_size)
    ids, mask = tokenizer.encode(CAPTIONS)
    with jax.default_matmul_precision("float32"):
        z = jax.jit(model.encode_image)(params, jnp.asarray(images)).pooled
        w = jax.jit(model.encode_text)(params, jnp.asarray(ids), jnp.asarray(mask)).pooled
    return pictures, images, np.asarray(z), np.asarray(w), np.exp(params["log_scale"]) * np.asarray(z) @ np.asarray(w).T


def pixels_of(folder, images):
    """Pictures of the model's own size through the processor: nothing is resampled."""
    return CLIPImageProcessor.from_pretrained(folder)([Image.fromarray(one) for one in images], return_tensors="pt")


def test_transformers_gives_equal_ids_embeddings_and_logits(trained, folders, ours):
    _, tokenizer, _ = trained
    _, images, z, w, logits = ours
    theirs = AutoTokenizer.from_pretrained(folders["hf"])
    tokens = theirs(CAPTIONS, padding=True, truncation=True, max_length=tokenizer.context_length, return_tensors="pt")
    ids, mask = tokenizer.encode(CAPTIONS)
    for row, own, valid in zip(tokens["input_ids"].numpy(), ids, mask, strict=True):
        assert row[: valid.sum()].tolist() == own[valid].tolist()
    model, report = CLIPModel.from_pretrained(folders["hf"], output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        out = model.eval()(**inputs, pixel_values=pixels_of(folders["hf"], images)["pixel_values"])
    np.testing.assert_allclose(out.image_embeds, z, rtol=0, atol=1e-4)
    np.testing.assert_allclose(out.text_embeds, w, rtol=0, atol=1e-4)
    np.testing.assert_allclose(out.logits_per_image, logits, rtol=0, atol=1e-4)


def test_transformers_own_processor_loads_the_folder(folders, ours):
    processor = CLIPProcessor.from_pretrained(folders["hf"])
    found = processor(text=CAPTIONS[:2], images=[Image.fromarray(ours[1][0])], return_tensors="pt", padding=True)
    assert {"input_ids", "attention_mask", "pixel_values"} <= set(found)


def test_open_clip_gives_equal_ids_embeddings_and_logits(trained, folders, ours):
    _, tokenizer, _ = trained
    _, images, z, w, logits = ours
    place = f"local-dir:{folders['open_clip']}"
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    tokens = open_clip.get_tokenizer(place)(CAPTIONS)
    ids, mask = tokenizer.encode(CAPTIONS)
    for row, own, valid in zip(tokens.numpy(), ids, mask, strict=True):
        assert row[: valid.sum()].tolist() == own[valid].tolist()
    pixels = torch.stack([preprocess(Image.fromarray(one)) for one in images])
    with torch.inference_mode():
        model.eval()
        np.testing.assert_allclose(model.encode_image(pixels, normalize=True), z, rtol=0, atol=1e-4)
        np.testing.assert_allclose(model.encode_text(tokens, normalize=True), w, rtol=0, atol=1e-4)
        np.testing.assert_allclose(model.get_logits(pixels, tokens)[0], logits, rtol=0, atol=1e-4)


def test_their_preprocessing_is_ours_but_for_rounding(trained, folders, ours):
    """Of pictures whose centre square begins at a whole pixel: they round where it does not, we take it as it is."""
    config, _, _ = trained
    pictures, images, *_ = ours
    processor = CLIPImageProcessor.from_pretrained(folders["hf"])
    mean, deviation = (np.array(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
    for picture, own in zip(pictures, images, strict=True):
        theirs = processor(picture, return_tensors="pt")["pixel_values"][0].numpy() * deviation + mean
        assert theirs.shape == (3, config.data.image_size, config.data.image_size)
        assert np.abs(255 * theirs.transpose(1, 2, 0) - own).mean() < 1


def test_the_counts_of_clip_benchmark(folders, ours):
    """Distinct captions, one of which has two pictures."""
    pictures, *_ = ours
    encoded = by_transformers(folders["hf"], pictures, CAPTIONS)
    caption = np.arange(len(CAPTIONS))
    caption[1] = 0
    found = recalls(encoded, caption)
    z, w = encoded
    best = np.argmax(z @ w.T, axis=1)
    assert found["i2t_R@1"] == pytest.approx(100 * np.mean(best == caption))
