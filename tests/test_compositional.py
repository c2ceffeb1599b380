import numpy as np
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, dataset, unit

from bacl_jax.eval.compositional import beat_all, halftrue, pair_wins
from bacl_jax.eval.embeddings import Embeddings

NEIGHBOURS = {0: [(1, 1, "colour"), (2, 0, "number")], 1: [(0, 1, "colour")], 3: [(4, 0, "other"), (5, 0, "other")]}


def run(data, z, w):
    return halftrue(Embeddings(Trainer(), {"z": unit(z), "w": unit(w)}, data, Tokenizer(), CONFIG, "test"))


def test_pairwise_beat_all_and_attributes_by_hand():
    # rows: caption 0 (wins, loses), caption 1 (wins), caption 2 (no neighbour), caption 3 (wins, ties)
    data = dataset([0, 1, 2, 3], total=6, half_true=NEIGHBOURS)
    w = np.eye(6)
    w[5] = w[3]
    z = [w[0] + 0.5 * w[1] + 2 * w[2], w[1], w[2], w[3]]
    found = run(data, z, w)
    assert found["halftrue_pairwise"] == pytest.approx(100 * (1 + 0 + 1 + 1 + 0.5) / 5)
    assert found["halftrue_beat_all"] == pytest.approx(100 * (0 + 1 + 0.5) / 3)
    assert found["halftrue_pairwise/colour"] == pytest.approx(100)
    assert found["halftrue_pairwise/number"] == 0
    assert found["halftrue_pairwise/other"] == pytest.approx(75)
    assert (found["n"], found["n_pairs"]) == (3, 5)


def test_matches_a_loop_over_a_score_matrix():
    rng = np.random.default_rng(1)
    own = rng.integers(0, 20, 60)
    table = {
        i: [(int(j), 0, "hair") for j in rng.choice(np.delete(np.arange(20), i), rng.integers(0, 5), replace=False)] for i in range(20)
    }
    z, w = rng.normal(size=(60, 5)), rng.normal(size=(20, 5))
    found = run(dataset(own.tolist(), total=20, half_true=table), z, w)
    scores = z @ w.T / np.linalg.norm(w, axis=1)
    wins = [[scores[row, c] > scores[row, j] for j, _, _ in table[c]] for row, c in enumerate(own) if table[c]]
    assert found["halftrue_pairwise"] == pytest.approx(100 * np.mean(np.concatenate(wins)))
    assert found["halftrue_beat_all"] == pytest.approx(100 * np.mean([all(row) for row in wins]))
    assert found["n"] == len(wins)


def test_a_neighbour_that_is_a_caption_of_the_same_image_is_none():
    data = dataset([0, 1], keys=["a/0", "a/0"], total=3, half_true=NEIGHBOURS)
    found = run(data, np.eye(3)[[0, 0]], np.eye(3))
    assert (found["n"], found["n_pairs"]) == (1, 1)
    assert "halftrue_pairwise/colour" not in found


def test_without_neighbours_nothing_is_claimed():
    assert run(dataset([0, 1]), np.eye(2), np.eye(2)) == {"n": 0, "n_pairs": 0}


def test_a_collapsed_model_scores_chance():
    data = dataset([0, 1, 3], total=6, half_true=NEIGHBOURS)
    found = run(data, np.ones((3, 4)), np.ones((6, 4)))
    assert found["halftrue_pairwise"] == pytest.approx(50)
    assert found["halftrue_beat_all"] == pytest.approx(100 * (1 / 3 + 1 / 2 + 1 / 3) / 3)


def test_the_blind_baseline_sees_the_other_pictures_alone():
    data = dataset([0, 1, 2], total=3, half_true={0: [(1, 0, "colour"), (2, 0, "hair")], 1: [(2, 0, "colour")]})
    z, w = unit([[1, 0.2, 0], [0.3, 1, 0], [0, 0.1, 1]]), unit(np.eye(3) + 0.1)
    found = run(data, z, w)
    blind = {row: w @ (z.sum(axis=0) - z[row]) for row in range(3)}
    wins = [blind[0][0] > blind[0][1], blind[0][0] > blind[0][2], blind[1][1] > blind[1][2]]
    assert found["halftrue_pairwise_blind"] == pytest.approx(100 * np.mean(wins))
    assert found["halftrue_beat_all_blind"] == pytest.approx(100 * (all(wins[:2]) + wins[2]) / 2)
    assert found["halftrue_pairwise/colour_blind"] == pytest.approx(50 * (wins[0] + wins[2]))
    assert found["halftrue_pairwise_chance"] == 50
    assert found["halftrue_beat_all_chance"] == pytest.approx(100 * (1 / 3 + 1 / 2) / 2)


def test_a_single_picture_has_no_others():
    found = run(dataset([0], total=2, half_true={0: [(1, 0, "colour")]}), np.eye(2)[[0]], np.eye(2))
    assert (found["halftrue_pairwise"], found["halftrue_pairwise_blind"], found["halftrue_pairwise_chance"]) == (100, 50, 50)


def test_ties():
    own, other = np.asarray([0.5, 0.5, 0.5]), np.asarray([0.5 + 1e-8, 0.6, 0.4])
    np.testing.assert_array_equal(pair_wins(own, other), [0.5, 0, 1])
    np.testing.assert_array_equal(beat_all(own, other, np.asarray([7, 8, 7])), [0.5, 0])
