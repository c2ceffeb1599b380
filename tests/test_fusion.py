"""Classification by fused embeddings: its measures, and that two anchors tell what neither tells alone."""

import types

import numpy as np
import tiny

from bacl_jax.data.source import EvalSplit, Example
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.fusion import _labels, classified, fusion


def test_measures_against_counts():
    right, found = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1])
    metrics = classified(found, right)
    np.testing.assert_allclose(metrics["accuracy"], 50)
    np.testing.assert_allclose(metrics["recall"], 100 * np.mean([2 / 3, 1 / 2, 0]))
    np.testing.assert_allclose(metrics["f1"], 100 * np.mean([4 / 6, 2 / 5, 0]))


def test_two_anchors_tell_what_neither_tells_alone(monkeypatch):
    """Four classes: the one anchor knows the first bit, the other the second."""
    r = np.random.default_rng(0)

    def source(count):
        rows = [Example(None, "x", f"{row}", label=f"class {r.integers(4)}") for row in range(count)]
        return [*rows, *[Example(None, "x", "", label="")] * 10]  # without a label: as class 3 where they counted

    def encode(self, rows):
        number = np.array([int(row.label[-1:] or 3) for row in rows])
        if self.anchor == "fused":
            return sum(encode(self.of(anchor), rows) for anchor in ("image", "audio")) / 2**0.5
        bit = number % 2 if self.anchor == "image" else number // 2
        return np.eye(4, dtype=np.float32)[bit + 2 * (self.anchor == "audio")]

    splits = {name: EvalSplit(source(40), np.zeros(50, int)) for name in ("validation", "test")}
    dataset = types.SimpleNamespace(train=source(80), splits=splits, captions=("x",))
    monkeypatch.setattr(Embeddings, "encode", encode)
    monkeypatch.setattr(Embeddings, "captions", np.zeros((1, 4)))
    metrics = fusion(Embeddings(None, None, dataset, None, tiny.media("image", "audio"), "test"))
    assert metrics["accuracy"] == metrics["f1"] == metrics["recall"] == 100
    assert metrics["image/accuracy"] < 70
    assert metrics["audio/accuracy"] < 70
    assert metrics["n"] == 40


def test_rows_without_a_label_are_of_no_class():
    rows = lambda *labels: [Example(None, "x", "", label=label) for label in labels]  # noqa: E731
    names, (train, asked) = _labels(rows("dog", "", "cat"), rows("", "dog", "zebra"))
    assert names == ["cat", "dog", "zebra"]
    assert (train.tolist(), asked.tolist()) == ([1, -1, 0], [-1, 1, 2])
