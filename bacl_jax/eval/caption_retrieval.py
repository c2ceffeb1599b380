"""The task `retrieval` over a file of pictures with several captions each, such as Karpathy's splits of COCO and Flickr30k.

Dimension legend: A pictures, C captions, D embedding width.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from bacl_jax.data.source import normalise
from bacl_jax.eval import caption_files
from bacl_jax.eval.benchmarks import Outcome
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.formats import LeftOut, counted
from bacl_jax.eval.rerank import Matcher, reranked
from bacl_jax.eval.retrieval import chance, ranked


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Pictures of a folder that could be read, and their captions: captions[c] describes picture of[c], with embeddings z and w."""

    folder: Path
    entries: list[caption_files.Captioned]
    captions: list[str]
    of: list[int]
    z: Float[np.ndarray, "A D"]
    w: Float[np.ndarray, "C D"]
    left_out: list[LeftOut]

    @property
    def captions_of(self) -> list[list[int]]:
        """The captions of each picture."""
        found: list[list[int]] = [[] for _ in self.entries]
        for caption, picture in enumerate(self.of):
            found[picture].append(caption)
        return found

    @property
    def counts(self) -> dict[str, float]:
        """`n`, `n_captions`, `n_entries`, `left_out/<reason>`."""
        found: dict[str, float] = {
            "n": len(self.entries),
            "n_captions": len(self.captions),
            "n_entries": len(self.entries) + len(self.left_out),
        }
        return found | counted(self.left_out)


def captioned_retrieval(encoder: Encoder) -> Outcome:
    """R@k, mAP and median rank in both directions, under the names of eval/retrieval.py, and `<way>_R@k_chance`: what guessing gets.

    As published: each caption is a query and an entry of its own, also one that reads as another picture's (the two tie). A picture is
    served by the best-ranked of its captions. `n`: pictures; `n_captions`; `n_entries`: pictures of the split in the file;
    `left_out/<reason>`: those that could not be read. Each picture is read once, for eval.rerank twice. Host memory: 4 D bytes a picture
    and a caption.
    """
    gallery = read(encoder)
    metrics: dict[str, float] = {}
    if gallery.entries:
        metrics = both_ways(gallery, encoder) | encoder.text_statistics(gallery.captions)
    return Outcome(metrics | gallery.counts, gallery.left_out)


def read(encoder: Encoder) -> Gallery:
    """Reads and encodes the pictures of eval.retrieval and their captions; equal captions are encoded once."""
    settings = encoder.config.eval.retrieval
    folder, entries = caption_files.read(settings)
    z, errors = encoder.pictures(folder, [one.shown for one in entries])
    left_out = [LeftOut(str(settings.path), entries[i].key, entries[i].shown.names[0], e.kind, str(e)) for i, e in sorted(errors.items())]
    kept = [place for place in range(len(entries)) if place not in errors]
    captions = [caption for place in kept for caption in entries[place].captions]
    of = [picture for picture, place in enumerate(kept) for _ in entries[place].captions]
    number = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    w = encoder.texts(list(number))[[number[caption] for caption in captions]] if captions else np.zeros((0, z.shape[1]), np.float32)
    return Gallery(folder, [entries[place] for place in kept], captions, of, z[kept], w, left_out)


def both_ways(gallery: Gallery, encoder: Encoder) -> dict[str, float]:
    chunk, shown = encoder.config.eval.chunk, encoder.show_progress
    right = {"i2t": gallery.captions_of, "t2i": [[picture] for picture in gallery.of]}
    metrics = ranked(gallery.z, gallery.w, right["i2t"], "i2t", chunk=chunk, show_progress=shown)
    metrics |= ranked(gallery.w, gallery.z, right["t2i"], "t2i", chunk=chunk, show_progress=shown)
    metrics |= chance(right["i2t"], len(gallery.w), "i2t") | chance(right["t2i"], len(gallery.z), "t2i")
    if encoder.config.eval.rerank:
        metrics |= reranked(gallery.z, gallery.w, right["i2t"], right["t2i"], matcher(gallery, encoder), encoder.config)
    return metrics


def matcher(gallery: Gallery, encoder: Encoder) -> Matcher:
    """Re-ranking reads the pictures that are among the candidates a second time: tokens of all of them would not fit into memory."""

    def pixels(numbers: Sequence[int]) -> Iterator[tuple[np.ndarray, Sequence[int]]]:
        for block, places, errors in encoder.pixels(gallery.folder, [gallery.entries[number].shown for number in numbers]):
            if errors:
                raise next(iter(errors.values()))  # it could be read before
            yield block, [numbers[place] for place in places]

    ids, mask = encoder.tokenizer.encode([normalise(caption) for caption in gallery.captions])
    return Matcher(encoder.trainer, encoder.params, pixels, ids, mask, encoder.config.eval.batch_size, encoder.show_progress)
