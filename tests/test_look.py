"""What trackers get to see of an evaluation, on scores that are known."""

import numpy as np
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, dataset, unit

from bacl_jax.eval import look
from bacl_jax.eval.embeddings import Embeddings


def embeddings(own, z, w):
    return Embeddings(Trainer(), {"z": unit(z), "w": unit(w)}, dataset(own), Tokenizer(), CONFIG, "test")


def test_distributions():
    """Picture 0 prefers its own caption, picture 1 that of picture 0; picture 2 has the caption of picture 0, too."""
    w = np.eye(3)[:2]
    found = look.distributions(embeddings([0, 1, 0], [[1, 0, 0], [0.8, 0.6, 0], [0.6, 0.8, 0]], w))
    assert found["similarity_true"] == pytest.approx([1.0, 0.6, 0.6])
    assert found["similarity_wrong"] == pytest.approx([0.0, 0.8, 0.8])
    assert found["boundary_score"] == pytest.approx([-1.0, 0.2, 0.2])


def test_where_every_caption_is_right_there_is_nothing_to_tell():
    assert look.distributions(embeddings([0, 0], np.eye(2), np.eye(2)[:1])) == {}


def test_of_many_pictures_some_are_asked(monkeypatch):
    monkeypatch.setattr(look, "QUERIES", 5)
    found = look.distributions(embeddings(list(range(12)), np.eye(12), np.eye(12)))
    assert {name: values.tolist() for name, values in found.items()} == {
        "similarity_true": [1.0] * 5,
        "similarity_wrong": [0.0] * 5,
        "boundary_score": [-1.0] * 5,
    }


def test_norms():
    params = {
        "towers": {"image": {"a": np.full((2, 2), 2.0, np.float32)}, "text": {"b": np.full(9, 1.0, np.float32), "c": {"d": np.zeros(2)}}},
        "policy": {"e": np.full(1, 5.0, np.float32)},
        "log_scale": np.float32(4),
    }
    assert look.norms(params) == {"parameter_norm/image": 4.0, "parameter_norm/text": 3.0, "parameter_norm/policy": 5.0}
