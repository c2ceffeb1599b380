"""Classification of rows by the embeddings of their anchors, each alone and all together: a logistic regression on the training rows.

Dimension legend: N rows, D embedding width.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bacl_jax.eval.embeddings import FUSED, Embeddings, fused
from bacl_jax.eval.probe import fit, scores, zero


def fusion(embeddings: Embeddings) -> dict[str, float]:
    """The task `fusion` on one split, in percent: `accuracy`, and `f1` and `recall` as means over the classes that the split has.

    Of several anchors these are of the fused embedding, and `<anchor>/...` of each alone. A row's class is its label (data.clips.label;
    of a stamp its uppermost folder). The L2 weight is the one of eval.probe.weights that is best on the validation split; where that is
    the split itself, on the training rows. `accuracy_chance`: what the most frequent class of training gets. `n`: rows that have a
    label; others, and training rows without an anchor, are left out. Rows of a class that training lacks are never right.
    Without labels: only `n`, at 0. Cost: the training rows encoded once, and a fit for each weight.
    """
    dataset = embeddings.dataset
    train, tuned, asked = dataset.train, dataset.splits["validation"].source, dataset.splits[embeddings.split].source
    if embeddings.split == "validation" or not len(tuned):
        tuned = train
    names, labels = embeddings.once("labels", lambda: _labels(train, asked, tuned))
    there = [one >= 0 for one in labels]
    labels = [one[known] for one, known in zip(labels, there, strict=True)]
    if len(names) < 2 or not all(map(len, labels)):
        return {"n": 0}
    most = np.bincount(labels[0]).argmax()
    metrics = {"accuracy_chance": 100 * float((labels[1] == most).mean()), "n": len(labels[1]), "n_classes": len(names)}
    anchors = embeddings.each_anchor()
    encoded: dict[str, list[Float[np.ndarray, "_ D"]]] = {}
    for anchor in anchors:
        own = embeddings.of(anchor)
        if anchor == FUSED:
            encoded[anchor] = [fused(parts) for parts in zip(*encoded.values(), strict=True)]
        else:
            trained = own.encode(train)
            encoded[anchor] = [trained, own.images, trained if tuned is train else own.encode(tuned)]
        z = [rows[known] for rows, known in zip(encoded[anchor], there, strict=True)]
        found = _measured(embeddings, z, labels, len(names))
        metrics |= found if anchor == anchors[-1] else {f"{anchor}/{name}": value for name, value in found.items()}
    return metrics


def _labels(*sources: Any) -> tuple[list[str], list[Int[np.ndarray, " _"]]]:
    """The classes, and for each source the class of each row, -1 where it has no label."""
    told = [[source[row].label for row in range(len(source))] for source in sources]
    names = sorted({label for one in told for label in one if label})
    number = {name: place for place, name in enumerate(names)}
    return names, [np.asarray([number.get(label, -1) for label in one], np.int64) for one in told]


def _measured(
    embeddings: Embeddings, z: list[Float[np.ndarray, "_ D"]], labels: list[Int[np.ndarray, " _"]], classes: int
) -> dict[str, float]:
    settings = embeddings.config.eval.probe
    there = z[0].any(1)  # of the training rows those with the anchor
    model, best = zero(classes, z[0].shape[1]), (-1.0, None)
    for weight in sorted(settings.weights, reverse=True):
        model = fit(z[0][there], labels[0][there], weight, model, steps=settings.steps)
        right = float((scores(model, z[2]).argmax(1) == labels[2]).mean())
        if right > best[0]:
            best = right, model
    assert best[1] is not None
    return classified(scores(best[1], z[1]).argmax(1), labels[1])


def classified(found: Int[np.ndarray, " N"], right: Int[np.ndarray, " N"]) -> dict[str, float]:
    """accuracy, and means over the classes among `right` of F1 and recall, in percent."""
    f1, recall = [], []
    for one in np.unique(right):
        hit = np.sum((found == one) & (right == one))
        f1.append(2 * hit / (np.sum(found == one) + np.sum(right == one)))
        recall.append(hit / np.sum(right == one))
    return {"accuracy": 100 * float((found == right).mean()), "f1": 100 * float(np.mean(f1)), "recall": 100 * float(np.mean(recall))}
