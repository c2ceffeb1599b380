"""What a tracker gets to see of an evaluation while a run trains: pictures of attention, distributions, norms of the parameters.

All of it is made of what the evaluation has encoded anyway, but for the attention of a few pairs, the same ones at every evaluation.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.pictures import attention_triptych, raster, triptychs
from bacl_jax.eval.retrieval import own_pairs
from bacl_jax.train.services import Look

QUERIES = 1024  # pictures of the split, evenly spread, that the distributions are of


def look(embeddings: Embeddings, split: str) -> Look:
    """By eval.split and config.watch; names begin with `split` where the split matters."""
    watch, config = embeddings.config.watch, embeddings.config
    drawn = watch.pictures and config.objective.cla.enabled and config.data.anchors == ("image",)
    shown = triptychs(embeddings, watch.pictures) if drawn else []
    figures = [attention_triptych([one], embeddings.trainer.grid) for one in shown]
    return Look(
        numbers=norms(embeddings.params) if watch.histograms else {},
        pictures={f"{split}/attention/{number}": raster(figure) for number, figure in enumerate(figures, 1)},
        histograms={f"{split}/{name}": values for name, values in distributions(embeddings).items()} if watch.histograms else {},
    )


def distributions(embeddings: Embeddings) -> dict[str, Float[np.ndarray, " n"]]:
    """Of pictures against the split's captions, one value a picture; empty where every caption is right for every picture.

    similarity_true: of its caption (the best one). similarity_wrong: of the caption that scores highest among the wrong ones.
    boundary_score: the second less the first. Near 0 is ambiguous; above 0 the wrong caption wins.
    """
    images, captions, right, _ = own_pairs(embeddings)
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), QUERIES)).round().astype(int))
    scores = embeddings.images[images[chosen]] @ embeddings.captions[captions].T
    own = np.zeros(scores.shape, bool)
    for row, number in enumerate(chosen.tolist()):
        own[row, right[number]] = True
    asked = ~own.all(axis=1)
    if not asked.any():
        return {}
    true = np.where(own, scores, -np.inf).max(axis=1)[asked]
    wrong = np.where(own, -np.inf, scores).max(axis=1)[asked]
    return {"similarity_true": true, "similarity_wrong": wrong, "boundary_score": wrong - true}


def norms(params: Mapping[str, Any]) -> dict[str, float]:
    """L2 norm of the evaluated parameters of each tower, and of the layers of CLA and BNS."""
    parts = dict(params["towers"]) | {name: part for name, part in params.items() if name not in ("towers", "log_scale", "bias")}
    found = jax.device_get(_norms(parts))
    return {f"parameter_norm/{name}": float(value) for name, value in found.items()}


@jax.jit
def _norms(parts: Mapping[str, Any]) -> dict[str, jax.Array]:
    return {
        name: jax.numpy.sqrt(sum((leaf.astype("float32") ** 2).sum() for leaf in jax.tree.leaves(part))) for name, part in parts.items()
    }
