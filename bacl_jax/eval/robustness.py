"""How much retrieval loses when the captions are corrupted (eval/corruptions.py): R@1 of each kind at several rates, mean over seeds."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from bacl_jax.config import Config
from bacl_jax.data.source import normalise
from bacl_jax.eval import caption_retrieval, corpus
from bacl_jax.eval.benchmarks import Outcome
from bacl_jax.eval.corruptions import corrupted
from bacl_jax.eval.embeddings import Embeddings, progress
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.retrieval import chance, own_pairs, ranked
from bacl_jax.rules import check_pictures


def measured(
    z: Float[np.ndarray, "A D"],
    captions: Sequence[str],
    pairs: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    encode: Callable[[list[str]], Float[np.ndarray, "C D"]],
    config: Config,
    *,
    show_progress: bool = False,
) -> dict[str, float]:
    """`i2t_R@1`, `t2i_R@1` and their `_chance`; of each kind at each rate `i2t_R@1/<kind>_<rate>` and so on, and `i2t_R@1_lost/...`: by how
    many points less than of the captions as they are.

    pairs: (the captions of each picture, the pictures of each caption). All captions are corrupted, queries and entries alike.
    Cost: every caption is encoded once for each kind, rate and seed.
    """
    settings, (captions_of, pictures_of) = config.eval.robustness, pairs

    def both(texts: Sequence[str]) -> dict[str, float]:
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        w = encode(list(number))[[number[text] for text in texts]]
        found = ranked(z, w, captions_of, "i2t", chunk=config.eval.chunk, show_progress=False)
        found |= ranked(w, z, pictures_of, "t2i", chunk=config.eval.chunk, show_progress=False)
        return {name: found[name] for name in ("i2t_R@1", "t2i_R@1")}

    clean = both(captions)
    guessed = chance(captions_of, len(captions), "i2t") | chance(pictures_of, len(z), "t2i")
    metrics = clean | {f"{name}_chance": guessed[f"{name}_chance"] for name in clean}
    variants = [(kind, rate) for kind in settings.kinds for rate in settings.rates]
    for kind, rate in progress(variants, "corrupting captions", len(variants), show_progress):
        runs = [both(corrupted(kind, captions, rate, seed)) for seed in range(settings.seeds)]
        for name in clean:
            mean = float(np.mean([run[name] for run in runs]))
            metrics |= {f"{name}/{kind}_{rate:g}": mean, f"{name}_lost/{kind}_{rate:g}": clean[name] - mean}
    return metrics


def split_robustness(embeddings: Embeddings) -> dict[str, float]:
    """The task `robustness` on one split: among the split's own images and captions. `n`: images; `n_captions`."""
    check_pictures(embeddings.config, "the task robustness", alone=True)
    images, captions, *pairs = own_pairs(embeddings)
    texts = [embeddings.dataset.captions[caption] for caption in captions]

    def encode(texts: list[str]) -> Float[np.ndarray, "C D"]:
        return corpus.encode_captions(embeddings.trainer, embeddings.params, embeddings.tokenizer, texts, embeddings.config)

    metrics = measured(
        embeddings.images[images], texts, (pairs[0], pairs[1]), encode, embeddings.config, show_progress=embeddings.show_progress
    )
    return metrics | {"n": len(images), "n_captions": len(captions)}


def captioned_robustness(encoder: Encoder) -> Outcome:
    """The same on the file that eval.retrieval names; what is left out is as of `retrieval`."""
    gallery = caption_retrieval.read(encoder)
    metrics: dict[str, float] = {}
    if gallery.entries:
        captions, pairs = [normalise(caption) for caption in gallery.captions], (gallery.captions_of, [[picture] for picture in gallery.of])
        metrics = measured(gallery.z, captions, pairs, encoder.quiet().texts, encoder.config, show_progress=encoder.show_progress)
    return Outcome(metrics | gallery.counts, gallery.left_out)
