import dataclasses
import math

import jax
import numpy as np
import pytest
import tiny
from eval_fakes import CONFIG, Tokenizer, Trainer, dataset, unit

from bacl_jax.config import ConfigError
from bacl_jax.config_eval import EvalConfig
from bacl_jax.data import tokenizer
from bacl_jax.data.source import ArraySource, assemble
from bacl_jax.eval import retrieval as R
from bacl_jax.eval.embeddings import Embeddings, fused
from bacl_jax.train.step import build


def reference(queries, gallery, positives, k):
    """R@k, mAP and median rank in a few lines, from the whole score matrix."""
    hits, precisions, ranks = [], [], []
    for q, right in zip(queries, positives, strict=True):
        right = [p for p in right if p >= 0]
        scores = np.round(gallery @ q, 5)
        negatives = np.delete(scores, right)
        best = scores[right].max()
        greater, ties, own = (negatives > best).sum(), (negatives == best).sum(), (scores[right] == best).sum()
        places = min(max(k - greater, 0), ties + own)
        hits.append(1 - math.comb(ties, places) / math.comb(ties + own, places))
        ranks.append(1 + greater + ties / 2)
        at = [((scores[right] > s).sum() + (1 + (scores[right] == s).sum()) / 2, (negatives > s).sum() + (negatives == s).sum() / 2)
              for s in scores[right]]  # fmt: skip
        precisions.append(np.mean([hit / (hit + wrong) for hit, wrong in at]))
    return 100 * np.mean(hits), 100 * np.mean(precisions), np.median(ranks)


def grid_points(rng, n):
    """Coordinates on a coarse grid, so that scores tie often and no two differ by rounding alone."""
    return rng.integers(-2, 3, (n, 4)).astype(np.float32) / 2


@pytest.mark.parametrize(("n_queries", "n_gallery", "chunk"), [(37, 53, 8), (5, 3, 100), (64, 64, 64), (1, 1, 1)])
@pytest.mark.parametrize("n_positives", [1, 3])
def test_ranks_match_the_reference_with_ties_and_several_positives(n_queries, n_gallery, chunk, n_positives):
    rng = np.random.default_rng(n_queries)
    queries, gallery = grid_points(rng, n_queries), grid_points(rng, n_gallery)
    counts = rng.integers(1, min(n_positives, n_gallery) + 1, n_queries)
    positives = R.padded([rng.choice(n_gallery, count, replace=False).tolist() for count in counts])
    found = R.summarise(R.rank(queries, gallery, positives, chunk=chunk), "x")
    for k in (1, 5, 10):
        recall, precision, median = reference(queries, gallery, positives, k)
        np.testing.assert_allclose([found[f"x_R@{k}"], found["x_mAP"], found["x_median_rank"]], [recall, precision, median], rtol=1e-6)


def test_a_collapsed_model_scores_chance():
    ones = unit(np.ones((50, 8)))
    found = R.summarise(R.rank(ones, ones, np.arange(50)[:, None], chunk=16), "x")
    assert found["x_R@1"] == pytest.approx(2.0)
    assert found["x_R@10"] == pytest.approx(20.0)
    assert found["x_median_rank"] == pytest.approx(25.5)


def test_other_positives_are_no_competitors():
    gallery = unit([[1, 0], [1, 0.1], [1, 0.2], [0, 1]])
    found = R.summarise(R.rank(unit([[1, 0]]), gallery, np.asarray([[1, 0, 2]])), "x")
    assert found["x_R@1"] == found["x_mAP"] == pytest.approx(100)
    found = R.summarise(R.rank(unit([[1, 0]]), gallery, np.asarray([[3, 1, -1]])), "x")
    assert found["x_R@1"] == 0
    assert found["x_mAP"] == pytest.approx(100 * (1 / 2 + 2 / 4) / 2)


def test_padding_rows_and_chunk_size_change_nothing():
    rng = np.random.default_rng(0)
    queries, gallery = unit(rng.normal(size=(30, 6))), unit(rng.normal(size=(41, 6)))
    positives = rng.integers(0, 41, (30, 2))
    whole = R.rank(queries, gallery, positives, chunk=64)
    for chunk in (1, 7, 30, 41):
        part = R.rank(queries, gallery, np.pad(positives, [(0, 0), (0, 2)], constant_values=-1), chunk=chunk)
        np.testing.assert_array_equal(part.greater[:, :2], whole.greater)
        np.testing.assert_array_equal(part.ties[:, :2], whole.ties)
        np.testing.assert_array_equal(part.above[:, :2], whole.above)


def temporary_bytes(tile, n_gallery, n_positives=2, width=32):
    shapes = [(tile, width), (tile, n_positives), (n_gallery // tile, tile, width)]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, (np.float32, np.int32, np.float32), strict=True)]
    compiled = R.count_ranks.lower(*arguments, jax.ShapeDtypeStruct((), np.int32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_a_few_tiles_whatever_the_gallery():
    tile = 256
    small, large = temporary_bytes(tile, 2048), temporary_bytes(tile, 65536)
    assert large <= 3 * tile * tile * 4 + 8 * tile * 32 * 4
    assert large <= small + 1024
    assert temporary_bytes(tile, 65536, n_positives=64) <= large + 20 * tile * 64 * 4


def test_bad_input_is_refused():
    two = unit(np.eye(2))
    with pytest.raises(ValueError, match="query 1 has no positive"):
        R.rank(two, two, np.asarray([[0], [-1]]))
    with pytest.raises(ValueError, match="row 5 of a gallery of 2"):
        R.rank(two, two, np.asarray([[0], [5]]))
    data = dataset([0, 1])
    with pytest.raises(ConfigError, match=r"eval.split = 'validation': .* splits with rows: test"):
        Embeddings(Trainer(), {}, data, Tokenizer(), CONFIG, "validation")
    broken = {"z": np.eye(2, dtype=np.float32) * np.nan, "w": np.eye(2, dtype=np.float32)}
    with pytest.raises(FloatingPointError, match="2 of 2 image embeddings"):
        R.retrieval(Embeddings(Trainer(), broken, data, Tokenizer(), CONFIG, "test"))


def scene(seed=0):
    """Rows 0..19 of the split over captions 0..11 (some anchors in two rows), 30 training rows over captions 8..39."""
    rng = np.random.default_rng(seed)
    own = [*range(12), *rng.integers(0, 12, 8)]
    keys = [f"Goog/{row}" for row in range(16)] + ["Goog/0", "Goog/1", "Goog/2", "Goog/19"]
    train = [39, *rng.integers(8, 39, 29)]
    params = {"z": unit(rng.normal(size=(50, 6))), "w": unit(rng.normal(size=(40, 6)))}
    for row in (16, 17, 18):
        params["z"][row] = params["z"][row - 16]
    return dataset(own, train, keys), params


def test_the_task_matches_the_reference_over_the_four_galleries():
    data, params = scene()
    own, anchors = data.splits["test"].caption, np.asarray([*range(16), 0, 1, 2, 19])
    z, w = params["z"], params["w"]
    found = R.retrieval(Embeddings(Trainer(), params, data, Tokenizer(), CONFIG, "test"))
    images = np.unique(anchors)
    captions_of = [sorted(set(own[anchors == image])) for image in images]
    images_of = [[np.flatnonzero(images == a)[0] for a in sorted(set(anchors[own == caption]))] for caption in range(12)]
    elsewhere = [[len(images) + row for row in np.flatnonzero(data.train_caption == caption)] for caption in range(12)]
    both = [a + b for a, b in zip(images_of, elsewhere, strict=True)]
    everything = np.concatenate([z[images], z[20:]])
    cases = {
        ("i2t", ""): (z[images], w[:12], captions_of),
        ("i2t", "_all"): (z[images], w, captions_of),
        ("t2i", ""): (w[:12], z[images], images_of),
        ("t2i", "_all"): (w[:12], everything, both),
    }
    for (prefix, suffix), (queries, gallery, right) in cases.items():
        for k in (1, 5, 10):
            recall, precision, median = reference(queries, gallery, right, k)
            assert found[f"{prefix}_R@{k}{suffix}"] == pytest.approx(recall, rel=1e-5)
        assert found[f"{prefix}_mAP{suffix}"] == pytest.approx(precision, rel=1e-5)
        assert found[f"{prefix}_median_rank{suffix}"] == pytest.approx(median)
    assert (found["n"], found["n_captions"], found["n_captions_all"], found["n_images_all"]) == (17, 12, 40, 47)


def test_a_collapsed_model_scores_chance_in_the_task():
    data, params = scene()
    params = {name: np.ones_like(values) / np.sqrt(values.shape[1]) for name, values in params.items()}
    found = R.retrieval(Embeddings(Trainer(), params, data, Tokenizer(), CONFIG, "test"))
    for name in (f"{way}_R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)):
        assert 0 < found[f"{name}_chance"] == pytest.approx(found[name])


def test_training_images_are_encoded_only_when_asked_for():
    data, params = scene()
    trainer = Trainer()
    found = R.retrieval(Embeddings(trainer, params, data, Tokenizer(), CONFIG, "test"), all_images=False)
    assert trainer.encoded_images == 32
    assert "t2i_R@1" in found
    assert "t2i_R@1_all" not in found


def test_captions_that_are_the_same_tokens_earn_chance():
    """Real towers and a tokenizer that knows none of the test's words: its captions are one row of tokens, in several batches."""
    config = dataclasses.replace(tiny.plain(), eval=EvalConfig(batch_size=8, chunk=8))
    known, unseen = [f"red {word}" for word in "abcd"], [f"{word} {word}" for word in "efghijklmnopqrstuvw"]
    captions = known + unseen
    images = list(np.random.default_rng(0).integers(0, 256, (len(captions), 32, 32, 3), np.uint8))
    data = assemble(
        name="unseen",
        description="words never seen",
        make_source=lambda rows: ArraySource(
            [images[i] for i in rows], [captions[i] for i in rows], [captions[i].replace(" ", "") for i in rows]
        ),
        row_captions=captions,
        row_splits=["train"] * len(known) + ["test"] * len(unseen),
        skipped={},
    )
    words = tokenizer.Tokenizer.train(known, config.data)
    trainer = build(config, words.vocab_size, tiny.one_device())
    found = R.retrieval(Embeddings(trainer, trainer.init(0).params, data, words, config, "test"))
    n = len(unseen)
    for k in (1, 5, 10):
        assert found[f"i2t_R@{k}"] == pytest.approx(100 * k / n)
    assert found["i2t_median_rank"] == (n + 1) / 2
    assert found["i2t_R@1_all"] <= 100 / n + 1e-9
    for suffix in ("", "_all"):
        assert found[f"t2i_R@1{suffix}"] <= 100 / n + 1e-9  # one picture is first for all of them


def test_what_does_not_depend_on_the_parameters_is_computed_once():
    data = dataset([0, 1, 2], total=4)
    params = {"z": np.eye(4, dtype=np.float32)[:3], "w": np.eye(4, dtype=np.float32)}
    first = Embeddings(Trainer(), params, data, Tokenizer(), CONFIG, "test")
    other = first.with_params({"z": params["z"][::-1], "w": params["w"]})
    assert other.tokens is first.tokens
    assert first.anchors is other.anchors
    assert other.once("a number", lambda: 3) == first.once("a number", lambda: 4) == 3
    np.testing.assert_array_equal(other.images, first.images[::-1])


def test_mrr_and_ndcg_against_their_definitions():
    r = np.random.default_rng(0)
    queries, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (r.normal(size=(20, 8)), r.normal(size=(30, 8))))
    positives = [sorted(r.choice(30, r.integers(1, 4), replace=False).tolist()) for _ in range(20)]
    ranks = R.rank(queries.astype(np.float32), gallery.astype(np.float32), R.padded(positives))
    reciprocal, gain = [], []
    for query, right in zip(queries, positives, strict=True):
        order = np.argsort(-(gallery @ query)).tolist()
        negatives = [entry for entry in order if entry not in right]
        best = min(right, key=order.index)
        reciprocal.append(1 / (1 + sum(order.index(entry) < order.index(best) for entry in negatives)))
        ideal = sum(1 / np.log2(2 + place) for place in range(len(right)))
        gain.append(sum(1 / np.log2(2 + order.index(entry)) for entry in right) / ideal)
    np.testing.assert_allclose(R.reciprocal_rank(ranks)["MRR"], 100 * np.mean(reciprocal), rtol=1e-6)
    np.testing.assert_allclose(R.discounted_gain(ranks)["nDCG"], 100 * np.mean(gain), rtol=1e-6)


def test_the_fused_embedding_is_the_mean_of_what_is_there():
    a, b = np.eye(3, dtype=np.float32)[:2], np.stack([np.eye(3, dtype=np.float32)[2], np.zeros(3, np.float32)])
    np.testing.assert_allclose(fused([a, b]), [[0.5**0.5, 0, 0.5**0.5], [0, 1, 0]], rtol=1e-6)
