import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, dataset, unit

from bacl_jax.config_objective import CLAConfig, ObjectiveConfig
from bacl_jax.eval import localization as L
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.objective.cla import align

WITH_CLA = dataclasses.replace(CONFIG, objective=ObjectiveConfig(cla=CLAConfig(enabled=True)))


def pair_of(images, others):
    row = np.arange(len(images))
    return L.Pairs(images, others, row, row, row, row)


def test_the_region_is_where_the_images_differ_and_the_foreground_is_not_blank():
    images = np.full((2, 8, 8, 3), 255, np.uint8)
    others = images.copy()
    others[0, 0:4, 4:8] = 0  # the upper right patch of a 2 x 2 grid
    others[1, 7, 0] = 0  # one of the 16 pixels of the lower left patch
    images[1, 0:4] = others[1, 0:4] = 100  # drawn alike in both
    upper_right, lower_left, nowhere = [False, True, False, False], [False, False, True, False], [False] * 4
    region, foreground = L.regions(pair_of(images, others), (2, 2), 0.05)
    assert region.tolist() == [upper_right, lower_left]
    assert foreground.tolist() == [upper_right, [True, True, True, False]]
    assert L.regions(pair_of(images, others), (2, 2), 0.1)[0].tolist() == [upper_right, nowhere]
    assert L.regions(pair_of(others, images), (2, 2), 0.05)[0].tolist() == [upper_right, lower_left]
    with pytest.raises(ValueError, match=r"3 x 3 patches does not divide images of 8 x 8"):
        L.regions(pair_of(images, others), (3, 3))


def test_answers_inside_the_region_and_ties():
    score = np.asarray([[0, 3, 1, 2], [5, 0, 0, 0], [1, 1, 1, 1], [0, 2, 2, 0]], np.float32)
    region = np.asarray([[False, True, False, False], [False, True, True, True], [True, False, False, False], [False, True, False, True]])
    np.testing.assert_allclose(L.share_inside(score, region), [1, 0, 0.25, 0.5])
    among = np.asarray([[True, False, True, True], [False, True, True, True], [True, True, False, False], [True] * 4])
    np.testing.assert_allclose(L.share_inside(score, region, among), [0, 1, 0.5, 0.5])


def texts(rng, n, t=9):
    """Random BOS words EOS padding, over so few words that prefixes and suffixes are shared often."""
    ids = np.zeros((n, t), np.int32)
    for row in ids:
        words = rng.integers(4, 6, rng.integers(1, t - 1))
        row[: len(words) + 2] = [1, *words, 2]
    return ids, ids > 0


def test_differing_rows_agree_with_the_alignment_of_the_objective():
    rng = np.random.default_rng(0)
    (ids, mask), (other, other_mask) = texts(rng, 500), texts(rng, 500)
    span = align(jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(other), jnp.asarray(other_mask))[2]
    np.testing.assert_array_equal(L.differing_rows(ids, mask, other, other_mask), np.asarray(span))


def test_differing_rows_by_hand():
    ids = np.asarray([[1, 7, 8, 9, 2, 0], [1, 7, 8, 2, 0, 0], [1, 7, 2, 0, 0, 0]])
    other = np.asarray([[1, 7, 5, 9, 2, 0], [1, 7, 4, 5, 2, 0], [1, 7, 2, 0, 0, 0]])
    found = L.differing_rows(ids, ids > 0, other, other > 0)
    assert [np.flatnonzero(row).tolist() for row in found] == [[2], [2], []]


class Attending(Trainer):
    """Attends where params["where"][caption number][patch] says, whatever the image."""

    def attend(self, params, text, image):
        assert text.tokens.shape[:2] == (16, 6), text.tokens.shape
        assert image.tokens.shape[:2] == (16, 4), image.tokens.shape
        numbers = np.asarray(text.tokens[:, 0] @ params["w"].T).argmax(1)
        rows = np.tile(params["base"], (16, 6, 1))
        rows[:, 1] = params["where"][numbers]
        return rows, np.zeros(16)

    def init(self, seed):
        return seed

    def eval_params(self, state):
        rng = np.random.default_rng(state)
        return FRESH | {"where": rng.dirichlet(np.ones(4), len(FRESH["w"]))}


FRESH = {"z": unit(np.eye(40)), "w": unit(np.eye(40)), "base": np.full(4, 0.25)}


def scene(rng, n=30, split=20):
    """Image i and image i + 1 differ in one patch; the first `split` rows are evaluated; neighbours are i and i + 1."""
    data = dataset(list(range(split)), list(range(split, n)), total=n, half_true={i: [(i + 1, 0, "hair")] for i in range(n - 1)})
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, keys=tuple(f"Goog/{i}" for i in range(split, n))))
    patches, image = [], np.full((32, 32, 3), 0, np.uint8)
    for row in range(n):
        target, at = (data.splits["test"].source, row) if row < split else (data.train, row - split)
        image = image.copy()
        if row:
            patches.append(int(rng.integers(4)))
            y, x = divmod(patches[-1], 2)
            image[16 * y + 4 : 16 * y + 16, 16 * x + 4 : 16 * x + 16] += 60 if row % 2 else 196
        target.painted[at] = image
        image[0, 0, 0] = row  # what the fake trainer reads
    return data, patches


def run(data, params, config=WITH_CLA, **options):
    return L.localization(Embeddings(Attending(), params, data, Tokenizer(), config, "test"), **options)


def test_attention_that_moves_where_the_images_differ_scores_everything():
    data, patches = scene(np.random.default_rng(0))
    where = np.zeros((40, 4))
    for i, patch in enumerate(patches):  # attention moves to, or leaves, the patch that differs between i and i + 1
        where[i + 1] = where[i]
        where[i + 1, patch] += 1
    found = run(data, FRESH | {"where": where})
    assert found["ael"] == found["ael_foreground"] == found["ael_token"] == 100
    assert found["ael_chance"] == found["ael_foreground_chance"] == 25
    assert (found["n"], found["n_left_out"]) == (20, 0)
    assert run(data, FRESH | {"where": np.roll(where, 1, axis=1)})["ael"] < 100


def test_an_untrained_model_scores_chance():
    data, _ = scene(np.random.default_rng(1), n=40, split=38)
    found = run(data, FRESH | {"where": np.zeros((40, 4))}, untrained_seeds=range(40))
    assert found["ael"] == found["ael_chance"]  # no attention moves anywhere: all patches tie
    assert found["ael_untrained"] == pytest.approx(found["ael_chance"], abs=3)
    assert found["ael_foreground_untrained"] == pytest.approx(found["ael_foreground_chance"], abs=3)
    assert found["ael_token_untrained"] == 100  # why the token side is no measure


def test_without_cla_only_the_baseline_is_measured():
    data, _ = scene(np.random.default_rng(2))
    params = FRESH | {"where": np.random.default_rng(0).dirichlet(np.ones(4), 40)}
    assert set(run(data, params, CONFIG)) == {"n", "n_left_out", "ael_chance", "ael_foreground_chance"}
    own = run(data, params, WITH_CLA, untrained_seeds=())
    other = run(data, params, CONFIG, baseline=lambda text, image: Attending().attend(params, text, image)[0])
    assert other["ael_baseline"] == own["ael"]
    assert other["ael_token_baseline"] == own["ael_token"]


def test_pairs_whose_images_or_tokens_are_the_same_are_left_out():
    data, _ = scene(np.random.default_rng(3))
    data.train.painted[0] = data.splits["test"].source.painted[19]
    found = run(data, FRESH | {"where": np.zeros((40, 4))}, untrained_seeds=())
    assert (found["n"], found["n_left_out"]) == (19, 1)
    assert run(data, FRESH, largest_region=0.2) == {"n": 0, "n_left_out": 20}


def test_pairs_need_one_style_and_a_manifest_has_none(caplog):
    data, _ = scene(np.random.default_rng(4))
    embeddings = Embeddings(Attending(), FRESH, data, Tokenizer(), WITH_CLA, "test")
    pairs = L.find_pairs(embeddings)
    assert pairs.caption.tolist() == list(range(20))
    assert pairs.false_caption.tolist() == list(range(1, 21))
    np.testing.assert_array_equal(pairs.others[pairs.other][-1], data.train[0].image)
    other_style = dataclasses.replace(data.train, keys=("Twtr/0",) * 10)
    embeddings.dataset = dataclasses.replace(data, train=other_style)
    assert L.find_pairs(embeddings).false_caption.tolist() == list(range(1, 20))
    manifest = dataclasses.replace(WITH_CLA, data=dataclasses.replace(WITH_CLA.data, kind="manifest"))
    with caplog.at_level("INFO"):
        assert run(data, FRESH, manifest) == {"n": 0}
    assert "no half-true pair" in caplog.text
