import dataclasses
import json

import numpy as np
import pytest
import tiny
from eval_fakes import CONFIG, Tokenizer, Trainer, dataset, unit
from PIL import Image

from bacl_jax.config import ConfigError, from_config_dict, to_dict
from bacl_jax.data.loader import eval_batches
from bacl_jax.eval import report, suite
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.rerank import reordered, split_retrieval
from bacl_jax.eval.retrieval import padded, rank, summarise
from bacl_jax.train.step import build


class WithHead(Trainer):
    """Its matching logit of the picture and the caption with these embeddings is <z, M w>."""

    asked = 0

    def attend(self, params, text, anchor):
        assert len(text.tokens) == len(anchor.tokens) == 16
        self.asked += 16
        return None, np.einsum("bd,de,be->b", anchor.tokens[:, 0], params["M"], text.tokens[:, 0])


def settings(k, **retrieval):
    changed = {"eval": to_dict(CONFIG)["eval"] | {"rerank": k, "retrieval": retrieval}, "objective": {"cla": {"enabled": True}}}
    return from_config_dict(to_dict(CONFIG) | changed)


def brute_force(scores, logits, right, k, top):
    """R@top and mAP with the first k of each row in the order of their logits."""
    hits, precision = [], []
    for row, logit, own in zip(scores, logits, right, strict=True):
        order = np.argsort(-row)
        order[:k] = order[:k][np.argsort(-logit[order[:k]])]
        place = {int(entry): at for at, entry in enumerate(order)}
        best = min(own, key=lambda entry: place[entry])
        hits.append(sum(entry not in own for entry in order[: place[best]]) < top)
        at = sorted(place[entry] for entry in own)
        precision.append(np.mean([(i + 1) / (p + 1) for i, p in enumerate(at)]))
    return 100 * np.mean(hits), 100 * np.mean(precision)


def scene():
    rng = np.random.default_rng(3)
    own = rng.integers(0, 25, 40).tolist()
    keys = [f"Goog/{row // 2}" for row in range(40)]  # two rows a picture
    params = {"z": unit(rng.normal(size=(40, 6))), "w": unit(rng.normal(size=(30, 6))), "M": rng.normal(size=(6, 6)).astype(np.float32)}
    params["z"][1::2] = params["z"][::2]
    return dataset(own, keys=keys, total=30), params


@pytest.mark.parametrize("k", [1, 7, 100])
def test_matches_an_ordering_by_hand_on_a_split(k):
    data, params = scene()
    trainer = WithHead()
    found = split_retrieval(Embeddings(trainer, params, data, Tokenizer(), settings(k), "test"))
    own = data.splits["test"].caption
    captions = np.unique(own)
    z, w = params["z"][::2], params["w"][captions]
    scores, logits = z @ w.T, z @ params["M"] @ w.T
    of_picture = [sorted({int(np.searchsorted(captions, own[row])) for row in (2 * i, 2 * i + 1)}) for i in range(20)]
    of_caption = [[i for i, row in enumerate(of_picture) if c in row] for c in range(len(captions))]
    for way, matrix, other, right in (("i2t", scores, logits, of_picture), ("t2i", scores.T, logits.T, of_caption)):
        for top in (1, 5, 10):
            recall, precision = brute_force(matrix, other, right, k, top)
            assert found[f"{way}_R@{top}_reranked"] == pytest.approx(recall), (way, top)
        assert found[f"{way}_mAP_reranked"] == pytest.approx(precision)
    if k == 1:
        assert all(found[f"{name}_reranked"] == found[name] for name in ("i2t_R@1", "t2i_R@5", "i2t_median_rank"))
    assert trainer.asked <= 16 * (-(-min(2 * 20 * k + 25 * k, 20 * 25) // 16) + 20)  # each pair once


def test_ties_of_the_logits_count_half():
    z, w = unit([[1, 0]]), unit([[1, 0], [1, 0.1], [1, 0.2], [0, 1]])
    positives = np.asarray([[1, -1]])
    before = rank(z, w, positives)
    after = reordered(before, positives, np.asarray([[0, 1, 2]]), np.asarray([[3.0, 3.0, 5.0]], np.float32))
    assert (after.greater[0, 0], after.ties[0, 0]) == (1, 1)
    after = reordered(before, positives, np.asarray([[0]]), np.asarray([[3.0]], np.float32))
    assert (after.greater[0, 0], after.ties[0, 0]) == (1, 0)


def test_a_positive_beyond_the_candidates_stays_behind_them():
    """All tie: entries 0 and 1 are the candidates, and 2 comes after them, whatever they are."""
    ones = unit(np.ones((1, 2)))
    after = reordered(rank(ones, ones[[0] * 4], np.asarray([[2]])), np.asarray([[2]]), np.asarray([[0, 1]]), np.ones((1, 2), np.float32))
    assert (after.greater[0, 0], after.ties[0, 0]) == (2, 1)
    found = summarise(after, "x")
    assert (found["x_R@1"], found["x_R@5"]) == (0, 100)


def test_a_collapsed_model_scores_chance():
    data, params = scene()
    flat = {name: np.ones_like(value) / np.sqrt(6) for name, value in params.items()}
    data = dataset(list(range(20)), total=20)
    found = split_retrieval(Embeddings(WithHead(), flat, data, Tokenizer(), settings(4), "test"))
    assert found["i2t_R@1_reranked"] == found["t2i_R@1_reranked"] == pytest.approx(5)


def test_a_file_with_several_captions_a_picture(tmp_path):
    rng, entries = np.random.default_rng(0), []
    for value in range(9):
        sentences = [{"raw": f"caption {2 * value + i}"} for i in range(2)]
        entries.append({"filename": f"{value}.png", "split": "test", "sentences": sentences})
        Image.new("RGB", (32, 32), (value, value, value)).save(tmp_path / f"{value}.png")
    (tmp_path / "4.png").unlink()
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))
    params = {"z": unit(rng.normal(size=(9, 6))), "w": unit(rng.normal(size=(18, 6))), "M": rng.normal(size=(6, 6)).astype(np.float32)}
    config = settings(5, path=str(tmp_path / "dataset_flickr30k.json"), images=str(tmp_path))
    found = suite.BENCHMARKS["retrieval"](Encoder(WithHead(), params, Tokenizer(), config)).metrics
    kept = [value for value in range(9) if value != 4]
    z, w = params["z"][kept], params["w"][[2 * value + i for value in kept for i in range(2)]]
    scores, logits = z @ w.T, z @ params["M"] @ w.T
    right = [[2 * i, 2 * i + 1] for i in range(8)]
    assert found["i2t_R@1_reranked"] == pytest.approx(brute_force(scores, logits, right, 5, 1)[0])
    assert found["t2i_R@1_reranked"] == pytest.approx(brute_force(scores.T, logits.T, [[i // 2] for i in range(16)], 5, 1)[0])
    (table,) = report.tables({"retrieval": found})
    assert "image to text, re-ranked" in list(table.columns[0].cells)


def test_it_is_off_by_default_and_while_training():
    data, params = scene()
    assert not any(name.endswith("_reranked") for name in split_retrieval(Embeddings(Trainer(), params, data, Tokenizer(), CONFIG, "test")))
    found = split_retrieval(Embeddings(Trainer(), params, data, Tokenizer(), settings(3), "test"), rerank=False)
    assert not any(name.endswith("_reranked") for name in found)


@pytest.mark.parametrize("cla", [{"enabled": False}, {"enabled": True, "lambda_match": 0.0}])
def test_a_model_without_a_trained_head_is_refused(cla):
    with pytest.raises(ConfigError, match=r"config\.eval\.rerank = 5: must be 0 where objective\.cla is not enabled or"):
        from_config_dict({"eval": {"rerank": 5}, "objective": {"cla": cla}})


def test_blocks_of_queries_change_nothing():
    rng = np.random.default_rng(0)
    z, w = unit(rng.normal(size=(30, 4))), unit(rng.normal(size=(20, 4)))
    positives = padded([rng.choice(20, int(rng.integers(1, 4)), replace=False).tolist() for _ in range(30)])
    candidates = np.argsort(-(z @ w.T), axis=1)[:, :6]
    logits = rng.normal(size=(30, 6)).astype(np.float32)
    whole, parts = (reordered(rank(z, w, positives), positives, candidates, logits, block) for block in (64, 7))
    assert summarise(whole, "x") == summarise(parts, "x")


def test_the_head_of_a_real_model_sees_the_right_pairs():
    config = tiny.config()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, context_length=6),
        eval=dataclasses.replace(config.eval, rerank=100, batch_size=8, chunk=8),
    )
    trainer = build(config, tiny.VOCABULARY, tiny.one_device())
    params = trainer.init(0).params
    painted = {row: np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8) for row in range(12)}
    data = dataset(list(range(12)), total=12)
    data.splits["test"].source.painted.update(painted)
    embeddings = Embeddings(trainer, params, data, Tokenizer(), config, "test")
    found = split_retrieval(embeddings)
    (ids, mask), (images, _) = Tokenizer().encode(data.captions), next(eval_batches(data.splits["test"].source, config.data, 12))
    seen = trainer.encode_image(params, images)
    logits = np.stack(
        [trainer.attend(params, trainer.encode_text(params, ids[[c] * 12], mask[[c] * 12]), seen)[1] for c in range(12)], axis=1
    )
    expected = summarise(rank(logits / 100, np.eye(12, dtype=np.float32), np.arange(12)[:, None]), "i2t", "_reranked")
    assert {name: found[name] for name in expected} == pytest.approx(expected)
