"""The peers' side of `make bench`, a case a process, in the peers' environment: `python -m benchmarks.peers CASE` (see measure.py).

open_clip (eager, its own towers and loss; its webdataset pipeline), faiss-cpu (a flat index) and torch's DataLoader with Pillow. Nothing
here is used elsewhere.
"""

import argparse
import functools
import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import drain, serve

THREADS = os.cpu_count() or 1
VOCABULARY, CONTEXT = 8192, 32


def train_step(batch: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """open_clip's towers and loss, AdamW with its split of the parameters, eager."""
    import torch
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIP

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    vision = {"image_size": 64, "patch_size": 8, "width": 192, "layers": 6, "head_width": 64}
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 192, "heads": 3, "layers": 4}
    model = CLIP(embed_dim=192, vision_cfg=vision, text_cfg=text, output_dict=True).train()
    weights = [[p for p in model.parameters() if (p.ndim >= 2) == decayed] for decayed in (False, True)]
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for group, decay in zip(weights, (0.0, 0.2), strict=True)],
        lr=5e-4,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    images = torch.randn(batch, 3, 64, 64)
    ids = torch.randint(1, VOCABULARY - 2, (batch, CONTEXT))
    for row, length in zip(ids, torch.randint(CONTEXT // 4, CONTEXT, (batch,)), strict=True):
        row[length:], row[length] = 0, VOCABULARY - 1  # the end token has the largest id, where open_clip pools
    loss_of = ClipLoss()

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(**model(images, ids))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        loss.item()

    return call, {"parameters": sum(p.numel() for p in model.parameters())}


def loss(size: int, dim: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """open_clip's ClipLoss, forward and backward, to both sides and the scale."""
    import torch
    from open_clip.loss import ClipLoss

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(size, dim), dim=-1).requires_grad_() for _ in range(2))
    scale, loss_of = torch.tensor(1 / 0.07, requires_grad=True), ClipLoss()

    def call() -> None:
        x.grad = y.grad = scale.grad = None
        loss_of(x, y, scale).backward()

    return call, {}


def topk(queries: int, bank: int, dim: int, k: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """faiss.IndexFlatIP over a bank of unit vectors."""
    import faiss
    import numpy as np

    faiss.omp_set_num_threads(THREADS)
    x, q = (np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32) for seed, n in enumerate((bank, queries)))
    index = faiss.IndexFlatIP(dim)
    index.add(x / np.linalg.norm(x, axis=1, keepdims=True))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    return lambda: index.search(q, k), {}


def pipeline(folder: str, batch: int, size: int, batches: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """A torch DataLoader whose workers open a picture with Pillow, crop it at random, scale it and give a tensor."""
    import numpy as np
    import torch
    from PIL import Image

    paths = sorted(entry.path for entry in os.scandir(folder) if entry.name.endswith(".png"))

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1 << 30

        def __getitem__(self, index: int) -> Any:
            with Image.open(paths[index % len(paths)]) as picture:
                image = picture.convert("RGB")
            x, y, side = (v.item() for v in torch.rand(3))
            side = (0.85 + 0.15 * side) * image.width
            left, top = x * (image.width - side), y * (image.height - side)
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
            return torch.from_numpy(np.asarray(image).copy())

    loader = iter(torch.utils.data.DataLoader(Pictures(), batch_size=batch, num_workers=THREADS))
    return lambda: [next(loader) for _ in range(batches)], {}


def shards(shards: str, form: str, batch: int, size: int, batches: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """open_clip's webdataset pipeline for training, its own transform and tokenizer; a worker process a core, shards drawn without end."""
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset

    settings = argparse.Namespace(
        train_data=f"{shards}/{form}/{{00000..{len(list(Path(shards, form).glob('*.tar'))) - 1:05d}}}.tar",
        train_num_samples=1 << 30,
        train_data_upsampling_factors=None,
        dataset_resampled=True,
        batch_size=batch,
        workers=THREADS,
        world_size=1,
        seed=0,
    )
    loaded = get_wds_dataset(settings, image_transform(size, is_train=True), is_train=True, tokenizer=SimpleTokenizer(context_length=77))
    source = iter(loaded.dataloader)
    return lambda: drain(source, batches), {"pairs": batch * batches, "workers": THREADS}


def allow_missing_operators() -> None:
    """torchvision's compiled operators are absent beside a torch for CPUs only: what it registers for them is left out.

    open_clip imports torchvision for its transforms, which are not used here.
    """
    import torch

    register = torch.library.register_fake

    def selective(name: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(name, str) and name.startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **kwargs)

    torch.library.register_fake = selective


CASES = {  # name -> (case, what it imports)
    "train_step": (train_step, ("torch", "open_clip")),
    "loss": (loss, ("torch", "open_clip")),
    "topk": (topk, ("faiss",)),
    "pipeline": (pipeline, ("torch", "PIL.Image")),
    "shards": (shards, ("torch", "open_clip", "webdataset")),
}

if __name__ == "__main__":
    case, modules = CASES[sys.argv[1]]
    if "open_clip" in modules:
        allow_missing_operators()
    for module in modules:
        importlib.import_module(module)
    serve(functools.partial(case, **json.loads(sys.argv[2])))
