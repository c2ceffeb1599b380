import dataclasses
import json

import numpy as np
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, dataset, unit
from PIL import Image

from bacl_jax.config import from_config_dict, to_dict
from bacl_jax.eval import report, suite
from bacl_jax.eval.corruptions import KINDS, corrupted
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.retrieval import retrieval
from bacl_jax.eval.robustness import split_robustness

CAPTIONS = ["a red bus on the wet street", "two dogs play in a park", "sunset", "x y"]


class Counting(Tokenizer):
    """Knows "caption 7" whatever the order of its words; anything else is "caption 30", which fits nothing."""

    def encode(self, captions):
        numbers = [[word for word in caption.split() if word.isdigit() and int(word) < 30] for caption in captions]
        return super().encode([f"caption {found[0] if found and len(found) == 1 else 30}" for found in numbers])


@pytest.mark.parametrize("kind", KINDS)
def test_rate_0_changes_nothing_and_each_seed_draws_anew(kind):
    assert corrupted(kind, CAPTIONS, 0, 0) == CAPTIONS
    drawn = [corrupted(kind, CAPTIONS, 0.5, seed) for seed in range(6)]
    assert len({tuple(one) for one in drawn}) > 3
    assert drawn[1] == corrupted(kind, CAPTIONS, 0.5, 1)
    assert corrupted(kind, CAPTIONS[::-1], 0.5, 1) == drawn[1][::-1]  # in whatever order they come
    assert all(caption.split() for one in drawn for caption in one)


def test_each_kind_does_what_it_says():
    long = [" ".join(f"word{i}" for i in range(2000)), "other words"]
    words = long[0].split()
    deleted = corrupted("delete", long, 0.3, 0)[0].split()
    assert 0.65 < len(deleted) / 2000 < 0.75
    assert deleted == [word for word in words if word in set(deleted)]
    swapped = corrupted("swap", long, 0.3, 0)[0].split()
    assert sorted(swapped) == sorted(words)
    assert all(abs(words.index(word) - place) <= 1 for place, word in enumerate(swapped))
    shuffled = corrupted("shuffle", long, 0.3, 0)[0].split()
    assert sorted(shuffled) == sorted(words)
    assert 0.65 < np.mean([a == b for a, b in zip(words, shuffled, strict=True)]) < 0.75
    replaced = corrupted("replace", long, 0.3, 0)[0].split()
    assert 0.65 < np.mean([a == b for a, b in zip(words, replaced, strict=True)]) < 0.75
    assert set(replaced) <= {*words, "other"} | {"words"}
    typed = corrupted("typo", long, 1.0, 0)[0].split()
    assert all(a != b for a, b in zip(["abcdef"] * 50, (corrupted("typo", ["abcdef"], 1.0, seed)[0] for seed in range(50)), strict=True))
    assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(words, typed, strict=True))


def test_what_is_hit_at_a_rate_is_hit_at_a_higher_one():
    caption = [" ".join(f"word{i}" for i in range(200))]
    few, many = (set(corrupted("delete", caption, rate, 3)[0].split()) for rate in (0.2, 0.6))
    assert many < few


def test_captions_of_one_word_keep_it():
    assert corrupted("delete", ["sunset"], 1.0, 0) == corrupted("swap", ["sunset"], 1.0, 0) == ["sunset"]
    assert corrupted("replace", ["sunset"], 1.0, 0) == ["sunset"]  # there is no other word
    assert corrupted("replace", ["sunset", "dawn"], 1.0, 0) == ["dawn", "sunset"]
    assert len(corrupted("typo", ["x"], 1.0, 0)[0]) in (1, 2)


def settings(retrieval=None, **values):
    return from_config_dict(to_dict(CONFIG) | {"eval": to_dict(CONFIG)["eval"] | {"robustness": values, "retrieval": retrieval or {}}})


def scene():
    rng = np.random.default_rng(0)
    params = {"z": unit(np.eye(10, 24).repeat(2, axis=0) + 0.1 * rng.normal(size=(20, 24))), "w": unit(np.eye(31, 24) + 0.01)}
    params["w"][30] = unit(np.ones(24))
    return dataset([i // 2 for i in range(20)], total=10), params


def test_on_a_split():
    data, params = scene()
    config = settings(kinds=("swap", "delete"), rates=(0.5, 1.0), seeds=2)
    embeddings = Embeddings(Trainer(), params, data, Counting(), config, "test")
    found, clean = split_robustness(embeddings), retrieval(embeddings)
    assert (found["i2t_R@1"], found["t2i_R@1"]) == (clean["i2t_R@1"], clean["t2i_R@1"])
    assert found["t2i_R@1/swap_0.5"] == found["t2i_R@1"]  # the fake model does not look at the order
    assert found["t2i_R@1_lost/swap_1"] == 0
    assert found["t2i_R@1/delete_1"] < found["t2i_R@1/delete_0.5"] < found["t2i_R@1"]
    assert found["i2t_R@1_lost/delete_1"] == pytest.approx(found["i2t_R@1"] - found["i2t_R@1/delete_1"])
    assert (found["n"], found["n_captions"], found["i2t_R@1_chance"]) == (20, 10, pytest.approx(10))
    assert "robustness" in suite.TASKS
    (table,) = report.tables({"robustness": found})
    assert list(table.columns[0].cells) == ["as they are", "swap 0.5", "swap 1", "delete 0.5", "delete 1", "chance"]


def test_the_mean_is_over_seeds():
    data, params = scene()
    embeddings = Embeddings(Trainer(), params, data, Counting(), settings(kinds=("delete",), rates=(0.5,), seeds=3), "test")
    found = split_robustness(embeddings)["t2i_R@1/delete_0.5"]
    each = []
    for seed in range(3):
        texts = corrupted("delete", [f"caption {i}" for i in range(10)], 0.5, seed)
        captions = dataclasses.replace(data, captions=tuple(texts))
        each.append(retrieval(Embeddings(Trainer(), params, captions, Counting(), CONFIG, "test"))["t2i_R@1"])
    assert found == pytest.approx(np.mean(each))


def test_on_a_file(tmp_path):
    entries = []
    for value in range(5):
        sentences = [{"raw": f"Caption {2 * value + i}"} for i in range(2)]
        entries.append({"filename": f"{value}.png", "split": "test", "sentences": sentences})
        if value != 3:
            Image.new("RGB", (32, 32), (value, value, value)).save(tmp_path / f"{value}.png")
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    config = settings({"path": str(tmp_path / "dataset_coco.json"), "images": str(tmp_path)}, kinds=("delete",), rates=(0.0, 1.0))
    params = {"z": np.eye(24, dtype=np.float32)[:5], "w": unit(np.eye(24)[[*np.repeat(range(5), 2), *range(10, 24), *[23] * 7]] + 0.001)}
    assert suite.on_files(config, ["robustness", "halftrue"]) == ["robustness"]
    assert suite.path_of(config, "robustness") == str(tmp_path / "dataset_coco.json")
    found = suite.BENCHMARKS["robustness"](Encoder(Trainer(), params, Counting(), config))
    m = found.metrics
    assert (m["i2t_R@1"], m["i2t_R@1/delete_0"], m["i2t_R@1_lost/delete_0"]) == (100, 100, 0)
    assert m["t2i_R@1/delete_1"] < 100
    assert (m["n"], m["n_captions"], m["n_entries"], m["left_out/missing"]) == (4, 8, 5, 1)
    assert found.left_out[0].picture == "3.png"
