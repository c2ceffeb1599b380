"""The model card of an exported model: what it is, how it was trained, what it scored, how to load it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bacl_jax.config import Config, sha256

_USE = {
    "hf": """from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

model = CLIPModel.from_pretrained(folder).eval()
tokens = AutoTokenizer.from_pretrained(folder)(captions, padding=True, truncation=True, max_length={length}, return_tensors="pt")
pixels = CLIPImageProcessor.from_pretrained(folder)(images, return_tensors="pt")  # PIL images; transparency flattened on white
logits = model(**tokens, **pixels).logits_per_image""",
    "open_clip": """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:" + folder)
tokens = open_clip.get_tokenizer("local-dir:" + folder)(captions)
pixels = torch.stack([preprocess(image) for image in images])  # PIL images; transparency flattened on white
logits = model.eval().get_logits(pixels, tokens)[0]""",
}


def card(config: Config, step: int, target: str, results: Mapping[str, Mapping[str, Any]], parameters: int) -> str:
    """Markdown, with the front matter that model hubs read. results: as `read_results` gives them."""
    library = {"hf": "transformers", "open_clip": "open_clip"}[target]
    image, text = config.model.image, config.model.text
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            "pipeline_tag: zero-shot-image-classification",
            "tags: [clip, contrastive, bacl]",
            "---",
            "",
            "# A dual encoder of bacl_jax",
            "",
            f"{parameters:,} parameters: an image tower of {image.depth} blocks of width {image.width} on {config.data.image_size} px in "
            f"patches of {image.patch}, a text tower of {text.depth} blocks of width {text.width} on {config.data.context_length} tokens, "
            f"embeddings of {config.model.embed_dim}.",
            "",
            *_origin(config, step),
            "Its own evaluation tokenises captions in lower case, with single spaces (NFC).",
            "",
            "## Use",
            "",
            "```python",
            _USE[target].format(length=config.data.context_length),
            "```",
            "",
            *_results(results),
        ]
    )


def _origin(config: Config, step: int) -> Iterator[str]:
    """Where the weights come from: the published ones that they began as, and the training."""
    objective = config.objective
    began = {tower.pretrained: None for tower in (config.model.image, config.model.text) if tower.pretrained}
    if began:
        yield f"Its weights began as those of {', '.join(began)}, under the licence that they came with."
    if step:
        parts = [objective.kind, *(name for name, on in (("BNS", objective.bns.enabled), ("CLA", objective.cla.enabled)) if on)]
        yield (
            f"Trained on {_data(config)} for {step:,} steps of {config.train.batch_size:,} pairs with {' + '.join(parts)} (arXiv "
            f"2511.08399), seed {config.seed}; config {sha256(config)[:12]}. The layers of BNS and CLA serve training and are not here."
        )
    else:
        yield "It was not trained further."
    yield ""


def read_results(workdir: str | Path, step: int) -> dict[str, dict[str, Any]]:
    """Task -> the content of DIR/eval/<step>/<task>.json; empty where the run was not evaluated at that step."""
    folder = Path(workdir) / "eval" / str(step)
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def _data(config: Config) -> str:
    if config.data.kind == "mixture":
        return " and ".join(f"{name} ({source.kind})" for name, source in zip(config.data.source_names(), config.data.sources, strict=True))
    return f"{config.data.kind} {config.data.path or ''}".strip()


def _results(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "## Results"
    yield ""
    if not results:
        yield "The run was not evaluated at this step."
        return
    yield "| task | data | metric | value |"
    yield "|---|---|---|---|"
    for task, result in results.items():
        for name, value in result["metrics"].items():
            if "/" not in name:
                yield f"| {task} | {result['data']} | {name} | {value:,.4g} |"
    yield ""
