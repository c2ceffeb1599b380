"""What a model does, shown on examples: the queries it gets wrong, the edits of a caption that fool it, where its attention moves.

Dimension legend: Q queries, G gallery entries, C captions.
"""

import base64
import dataclasses
import io
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from bacl_jax.eval.compositional import ScoredPairs, pair_wins, scored_pairs
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.pictures import Triptych, pixels, spread, triptychs
from bacl_jax.eval.retrieval import TIE, own_pairs

BLOCK = 2**24  # scores held at a time


@dataclasses.dataclass(frozen=True)
class Choice:
    """An entry that the model put first. margin: its score less that of the best right entry. picture: a data URI, "" for a caption."""

    caption: str
    picture: str
    right: bool
    margin: float


@dataclasses.dataclass(frozen=True)
class Query:
    """An image with its caption, or a caption with the best image of it (data URI). place: of the best right entry; 1 is first."""

    caption: str
    picture: str
    place: int
    choices: tuple[Choice, ...]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """One way of retrieval. wrong: of `asked` queries, how many have another entry of `among` above every right one.

    worst: those of the largest margin. sample: queries spread evenly over all, right or wrong.
    """

    asked: int
    among: int
    wrong: int
    worst: tuple[Query, ...]
    sample: tuple[Query, ...]


@dataclasses.dataclass(frozen=True)
class Edit:
    """One word put for another, in `pairs` half-true pairs. fooled: in so many the half-true caption scores higher; a tie counts half."""

    true: str
    false: str
    pairs: int
    fooled: float


@dataclasses.dataclass(frozen=True)
class Attribute:
    """All edits of one attribute, those that fool the model most often in `edits`. margin: mean score of the true caption less the other's.

    picture, caption, false_caption, worst: the pair of the smallest such margin, `worst`.
    """

    name: str
    pairs: int
    fooled: float
    margin: float
    edits: tuple[Edit, ...]
    picture: str
    caption: str
    false_caption: str
    worst: float


@dataclasses.dataclass(frozen=True)
class Examples:
    """What the report shows of a model at one step. attention: with `grid` patches, empty for a model without CLA."""

    step: int
    split: str
    to_text: Gallery
    to_image: Gallery
    attributes: tuple[Attribute, ...]
    attention: tuple[Triptych, ...]
    grid: tuple[int, int]


def gather(embeddings: Embeddings, step: int) -> Examples | None:
    """All examples of one split, of pictures; None with other anchors. Cost beside the embeddings: the split's rows scored with all
    captions, a hundred pictures decoded."""
    if embeddings.config.data.anchors != ("image",):
        return None
    attends = embeddings.config.objective.cla.enabled
    pairs = scored_pairs(embeddings)
    return Examples(
        step=step,
        split=embeddings.split,
        to_text=images_to_captions(embeddings),
        to_image=captions_to_images(embeddings),
        attributes=() if pairs is None else confusion(embeddings, pairs),
        attention=tuple(triptychs(embeddings, 6)) if attends else (),
        grid=embeddings.trainer.grid if attends else (0, 0),
    )


def data_uri(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """A picture as the text that an <img> takes for its source."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


@dataclasses.dataclass(frozen=True)
class Ranking:
    """For each query the score of its best right entry, that entry's place, and the first entries with their scores."""

    own: Float[np.ndarray, " Q"]
    place: Int[np.ndarray, " Q"]
    first: Int[np.ndarray, "Q k"]
    score: Float[np.ndarray, "Q k"]

    def wrong(self) -> Int[np.ndarray, " n"]:
        """Queries whose right entries are all behind another one, the widest margin first."""
        margin = self.score[:, 0] - self.own
        wrong = np.flatnonzero(margin > TIE)
        return wrong[np.argsort(-margin[wrong], kind="stable")]


def ranked(queries: Float[np.ndarray, "Q D"], gallery: Float[np.ndarray, "G D"], right: Sequence[Sequence[int]], listed: int) -> Ranking:
    """`listed` entries of the gallery that score highest for each query; right: the entries that are right for it, one at least."""
    rows = max(1, BLOCK // len(gallery))
    parts = []
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ gallery.T
        own = np.asarray([line[list(entries)].max() for line, entries in zip(scores, right[start : start + rows], strict=True)])
        first = np.argsort(-scores, axis=1, kind="stable")[:, :listed]
        parts.append((own, 1 + (scores > own[:, None] + TIE).sum(axis=1), first, np.take_along_axis(scores, first, axis=1)))
    return Ranking(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def images_to_captions(embeddings: Embeddings, worst: int = 12, sample: int = 6, listed: int = 4) -> Gallery:
    """Every image of the split against all captions of the data set."""
    captions = embeddings.dataset.captions
    images, asked, of_image, _ = own_pairs(embeddings)
    right = [asked[entries].tolist() for entries in of_image]
    found = ranked(embeddings.images[images], embeddings.captions, right, listed)

    def shown(queries: Int[np.ndarray, " n"]) -> tuple[Query, ...]:
        thumbnails = pixels(embeddings.dataset.splits[embeddings.split].source, images[queries], embeddings)
        out = []
        for query, thumbnail in zip(queries.tolist(), thumbnails, strict=True):
            entries = zip(found.first[query].tolist(), found.score[query].tolist(), strict=True)
            choices = tuple(Choice(captions[entry], "", entry in right[query], score - float(found.own[query])) for entry, score in entries)
            true = captions[max(right[query], key=lambda entry, z=embeddings.images[images[query]]: float(z @ embeddings.captions[entry]))]
            out.append(Query(true, data_uri(thumbnail), int(found.place[query]), choices))
        return tuple(out)

    wrong = found.wrong()
    return Gallery(len(images), len(captions), len(wrong), shown(wrong[:worst]), shown(spread(len(images), sample)))


def captions_to_images(embeddings: Embeddings, worst: int = 8, sample: int = 4, listed: int = 4) -> Gallery:
    """Every caption of the split against the split's images."""
    own, captions = embeddings.split_captions, embeddings.dataset.captions
    images, asked, _, right = own_pairs(embeddings)
    z = embeddings.images[images]
    found = ranked(embeddings.captions[asked], z, right, listed)

    def shown(queries: Int[np.ndarray, " n"]) -> tuple[Query, ...]:
        best = [max(right[query], key=lambda entry, w=embeddings.captions[asked[query]]: float(z[entry] @ w)) for query in queries]
        entries = np.column_stack([np.asarray(best, np.int64), found.first[queries]])
        thumbnails = iter(pixels(embeddings.dataset.splits[embeddings.split].source, images[entries.reshape(-1)], embeddings))
        out = []
        for query, line in zip(queries.tolist(), entries[:, 1:].tolist(), strict=True):
            scores, picture = found.score[query].tolist(), data_uri(next(thumbnails))
            choices = tuple(
                Choice(captions[own[images[entry]]], data_uri(next(thumbnails)), entry in right[query], score - float(found.own[query]))
                for entry, score in zip(line, scores, strict=True)
            )
            out.append(Query(captions[asked[query]], picture, int(found.place[query]), choices))
        return tuple(out)

    wrong = found.wrong()
    return Gallery(len(asked), len(images), len(wrong), shown(wrong[:worst]), shown(spread(len(asked), sample)))


def confusion(embeddings: Embeddings, pairs: ScoredPairs, listed: int = 6) -> tuple[Attribute, ...]:
    """The attributes of half-true pairs, those that fool the model most often first."""
    captions, margin = embeddings.dataset.captions, pairs.true_score - pairs.false_score
    fooled = 1 - pair_wins(pairs.true_score, pairs.false_score)
    names = sorted(set(pairs.attribute.tolist()))
    worst = [int(min(np.flatnonzero(pairs.attribute == name), key=lambda n: margin[n])) for name in names]
    thumbnails = pixels(embeddings.dataset.splits[embeddings.split].source, pairs.row[worst], embeddings)
    out = []
    for name, pair, thumbnail in zip(names, worst, thumbnails, strict=True):
        rows = np.flatnonzero(pairs.attribute == name)
        edits: dict[tuple[str, str], list[float]] = defaultdict(list)
        for n in rows.tolist():
            words = (captions[caption].split()[pairs.position[n]] for caption in (pairs.own[n], pairs.other[n]))
            edits[next(words), next(words)].append(float(fooled[n]))
        most = sorted((Edit(*words, len(each), sum(each)) for words, each in edits.items()), key=lambda edit: (-edit.fooled, edit.pairs))
        out.append(
            Attribute(
                name=name,
                pairs=len(rows),
                fooled=float(fooled[rows].sum()),
                margin=float(margin[rows].mean()),
                edits=tuple(edit for edit in most[:listed] if edit.fooled),
                picture=data_uri(thumbnail),
                caption=captions[pairs.own[pair]],
                false_caption=captions[pairs.other[pair]],
                worst=float(margin[pair]),
            )
        )
    return tuple(sorted(out, key=lambda attribute: -attribute.fooled / attribute.pairs))
