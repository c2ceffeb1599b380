"""A trained model, exported and evaluated by its new homes: the same retrieval numbers through transformers and through open_clip.

    python -m launch.train --config=configs/emoji_vit_bacl.py --workdir=runs/vit
    python -m benchmarks.exported --workdir=runs/vit

Exports the newest checkpoint in both forms, lets each library load the folder with its own tokenizer and its own preprocessing, encodes the
test split with it and counts R@1, R@5 and R@10 with CLIP_benchmark's function; beside them the numbers of our own evaluation. Needs
requirements-peers.txt and what the Makefile installs with it.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image
from rich.console import Console
from rich.table import Table

from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.restore import restore
from bacl_jax.eval.retrieval import retrieval
from bacl_jax.interop import export
from bacl_jax.mesh import to_host
from benchmarks.peers import allow_missing_operators

TOP = (1, 5, 10)
ROWS = 64  # encoded at a time
Encoded = tuple[np.ndarray, np.ndarray]  # of pictures and of captions, normalised


def transformers(folder: Path, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Encoded:
    """As `CLIPModel` gives them."""
    import torch
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)

    def image(part: Sequence[Image.Image]) -> Any:
        pixels = processor(list(part), return_tensors="pt")["pixel_values"]
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    def text(part: Sequence[str]) -> Any:
        length = model.config.text_config.max_position_embeddings
        tokens = tokenizer(list(part), padding=True, truncation=True, max_length=length, return_tensors="pt")
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return model.text_projection(model.text_model(**inputs).pooler_output)

    with torch.inference_mode():
        return _in_parts(image, pictures), _in_parts(text, captions)


def open_clip(folder: Path, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Encoded:
    """As `create_model_and_transforms` gives them."""
    import open_clip as library
    import torch

    model, _, preprocess = library.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = library.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.inference_mode():
        z = _in_parts(lambda part: model.encode_image(torch.stack([preprocess(picture) for picture in part])), pictures)
        return z, _in_parts(lambda part: model.encode_text(tokenizer(list(part))), captions)


def _in_parts(encode: Callable[[Any], Any], items: Sequence[Any]) -> np.ndarray:
    found = np.concatenate([encode(items[start : start + ROWS]).float().numpy() for start in range(0, len(items), ROWS)])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def recalls(encoded: Encoded, caption: np.ndarray) -> dict[str, float]:
    """Percent by CLIP_benchmark's own function. caption: of each picture the index of its caption."""
    import torch
    from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k

    z, w = map(torch.from_numpy, encoded)
    scores, positive = w @ z.T, torch.from_numpy(np.arange(len(w))[:, None] == caption[None])
    found = {}
    for direction, s, p in (("i2t", scores.T, positive.T), ("t2i", scores, positive)):
        found |= {f"{direction}_R@{k}": 100 * (recall_at_k(s, p, k) > 0).float().mean().item() for k in TOP}
    return found


def compare(workdir: str, folder: Path, split: str) -> dict[str, Mapping[str, float]]:
    """Who evaluated -> metric -> percent."""
    found = restore(workdir)
    embeddings = Embeddings(found.trainer, found.params, found.dataset, found.tokenizer, found.config, split)
    part = found.dataset.splits[split]
    used, caption = np.unique(part.caption, return_inverse=True)
    captions = [found.dataset.captions[i] for i in used]
    pictures = [Image.fromarray(part.source[i].image) for i in range(len(part.source))]
    results: dict[str, Mapping[str, float]] = {"bacl_jax": retrieval(embeddings, all_images=False)}
    libraries: dict[export.Target, Callable[[Path, Sequence[Image.Image], Sequence[str]], Encoded]] = {
        "hf": transformers,
        "open_clip": open_clip,
    }
    for target, encode in libraries.items():
        out = export.write(folder / target, found.config, found.tokenizer, to_host(found.params), target, "")
        results[encode.__name__] = recalls(encode(out, pictures, captions), caption)
    return results


def main(argv: list[str]) -> None:
    del argv
    workdir, split = flags.FLAGS.workdir, flags.FLAGS.split
    allow_missing_operators()
    with tempfile.TemporaryDirectory() as folder:
        results = compare(workdir, Path(folder), split)
    table = Table(title=f"{workdir}, {split} (percent)")
    names = [f"{direction}_R@{k}" for direction in ("i2t", "t2i") for k in TOP]
    for column in ("evaluated through", *names):
        table.add_column(column, justify="right")
    for who, metrics in results.items():
        table.add_row(who, *(f"{metrics[name]:.2f}" for name in names))
    Console(width=120).print(table)


if __name__ == "__main__":  # a test imports this module beside others that have flags of these names
    flags.DEFINE_string("workdir", None, "Folder of a run of configs/emoji_vit_bacl.py.", required=True)
    flags.DEFINE_string("split", "test", "validation or test.")
    app.run(main)
