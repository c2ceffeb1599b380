"""Which rows a step reads: each once an epoch, whatever the shuffle; mixtures in fixed shares; lanes that hosts read apart."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import order
from bacl_jax.data.sampler import Blocks, Sampler, interleaved, share_out
from bacl_jax.data.source import Part

ROWS = 100_000
CONFIGS = {
    "global": DataConfig(),
    "block": dataclasses.replace(DataConfig(), shuffle="block", block_rows=256, block_window=1024, block_lanes=8),
}


def steps_of(sampler, steps):
    return np.concatenate([sampler.rows(step) for step in steps])


@pytest.fixture(scope="module", params=CONFIGS)
def epoch(request):
    """(name, rows of one epoch and a bit): batches of 384 rows do not divide the epoch."""
    sampler = Sampler(7, 384, [Part("", ROWS)], CONFIGS[request.param])
    return request.param, steps_of(sampler, range(-(-2 * ROWS // 384)))


def test_a_hundred_thousand_rows_come_once_an_epoch(epoch):
    _, rows = epoch
    for number in (0, 1):
        assert (np.bincount(rows[number * ROWS : (number + 1) * ROWS], minlength=ROWS) == 1).all()
    assert (rows[:ROWS] != rows[ROWS : 2 * ROWS]).mean() > 0.99


def test_partners_replace_the_last_rows_of_a_batch_and_no_other(epoch):
    _, rows = epoch
    partners = order.PartnerList.from_bank(0, np.arange(ROWS), np.arange(ROWS)[:, None][::-1])
    replaced = 0
    for step in range(100):
        base = rows[step * 384 : (step + 1) * 384]
        mixed = order.with_partners(base, partners, 0.25, 7, step)
        np.testing.assert_array_equal(mixed[:288], base[:288])
        np.testing.assert_array_equal(mixed[288:], ROWS - 1 - base[:96])
        replaced += int((mixed != base).sum())
    assert replaced == 100 * 96


def test_where_a_row_comes_tells_nothing_of_where_it_lies(epoch):
    """Chi-square over 20 parts of the epoch and 20 parts of the storage: even for single rows; for blocks, over the blocks."""
    name, rows = epoch
    rows = rows[:ROWS]
    if name == "block":
        rows = rows[np.sort(np.unique(rows // 256, return_index=True)[1])]  # the first row of each block, when it first comes
    place = np.arange(len(rows)) * 20 // len(rows)
    table = np.zeros((20, 20))
    np.add.at(table, (place, rows * 20 // ROWS), 1)
    assert stats.chi2_contingency(table).pvalue > 0.001
    assert abs(stats.spearmanr(np.arange(len(rows)), rows).statistic) < 4 / np.sqrt(len(rows))


def test_neighbours_in_an_epoch_are_not_neighbours_in_storage():
    rows = Sampler(7, 384, [Part("", ROWS)], CONFIGS["global"]).rows(3)
    assert (np.abs(np.diff(rows)) <= 256).mean() < 0.03  # 2 * 256 / 100,000 of them by chance
    rows = steps_of(Sampler(7, 384, [Part("", ROWS)], CONFIGS["block"]), range(10))
    assert (np.diff(rows) == 1).mean() < 0.01


@settings(deadline=None)
@given(
    n=st.integers(1, 400),
    count=st.integers(1, 90),
    blocks=st.builds(Blocks, st.integers(1, 50), st.integers(1, 120), st.integers(1, 9)),
    epoch=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_hold_every_row_once_an_epoch(n, count, blocks, epoch, seed):
    steps = range(epoch * n // count, (epoch + 1) * n // count + 1)
    rows = np.concatenate([blocks.batch_rows(seed, step, count, n, ()) for step in steps])
    start = epoch * n - steps[0] * count
    assert sorted(rows[start : start + n]) == list(range(n))


def test_hosts_read_blocks_of_their_own():
    """4 hosts, 8 lanes: over 30 steps a host meets few blocks, and hardly any that another one meets."""
    sampler = Sampler(0, 256, [Part("", ROWS)], CONFIGS["block"])
    batches = np.stack([sampler.rows(step) for step in range(30)]).reshape(30, 4, 64)
    blocks = [set((batches[:, host] // 256).ravel().tolist()) for host in range(4)]
    assert max(map(len, blocks)) <= 2 * 2 * (1024 // 256 + 2)  # two lanes, each in at most two windows of five blocks or six
    counts = collections.Counter(block for found in blocks for block in found)
    assert sum(count > 1 for count in counts.values()) <= 6
    spread = np.stack([Sampler(0, 256, [Part("", ROWS)], CONFIGS["global"]).rows(step) for step in range(30)]) // 256
    assert len(np.unique(spread)) > 10 * max(map(len, blocks))


def test_a_mixture_gives_each_source_its_share_of_every_batch():
    parts = [Part("a", 1000, 3.0), Part("b", 70, 1.0), Part("c", 500, 0.5)]
    sampler = Sampler(1, 90, parts, DataConfig())
    assert sampler.counts == (60, 20, 10)
    rows = np.stack([sampler.rows(step) for step in range(50)])
    for number, (low, high) in enumerate([(0, 1000), (1000, 1070), (1070, 1570)]):
        own = (rows >= low) & (rows < high)
        assert (own.sum(axis=1) == sampler.counts[number]).all()
        assert (own == own[0]).all()
        drawn, length = rows[own] - low, high - low
        for start in range(0, len(drawn) - length + 1, length):
            assert sorted(drawn[start : start + length]) == list(range(length))
    assert sampler.epochs(50) == {"a": 3.0, "b": 1000 / 70, "c": 1.0}
    assert [sampler.part_of(row).name for row in (0, 999, 1000, 1069, 1070)] == ["a", "a", "b", "b", "c"]


def test_sources_of_one_size_have_orders_of_their_own():
    rows = Sampler(1, 100, [Part("a", 50), Part("b", 50)], DataConfig()).rows(0)
    assert (rows[rows < 50] != rows[rows >= 50] - 50).any()


def test_every_host_has_the_mixture():
    source = interleaved((60, 20, 10))
    for part in source.reshape(9, 10):
        assert 6 <= (part == 0).sum() <= 7
        assert 2 <= (part == 1).sum() <= 3


def test_a_replacement_is_of_the_same_source():
    sampler = Sampler(1, 90, [Part("a", 1000, 3.0), Part("b", 70, 1.0)], DataConfig())
    rows = sampler.rows(4)
    for position in range(90):
        found = {sampler.replacement(4, position, attempt, int(rows[position])) for attempt in range(5)}
        assert {sampler.part_of(row).name for row in found} == {sampler.part_of(int(rows[position])).name}
        assert len(found) > 1


def test_one_source_is_read_as_ever():
    np.testing.assert_array_equal(Sampler(5, 64, [Part("", 1000, 0.3)], DataConfig()).rows(9), order.batch_rows(5, 9, 64, 1000))


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((1.0, 1.0), (4, 3)), ((5.0, 2.0), (5, 2)), ((1.0, 1.0, 1.0), (3, 2, 2)), ((3.0, 1.0), (5, 2)), ((1.0, 1.0, 5.0, 1.5), (1, 1, 4, 1))],
)
def test_shares_are_whole_rows(weights, counts):
    assert share_out(weights, 7, "abc") == counts


def test_a_share_without_a_row_is_refused():
    with pytest.raises(ConfigError, match=r"b has a share of 0.001, no row in a batch of 64; raise its weight or raise train.batch_size"):
        share_out([999.0, 1.0], 64, ["a", "b"])


@pytest.mark.parametrize(
    ("share", "said"), [(0.05, "pictures has a share of 0.05, .* raise it"), (0.9, "pairs has a share of 0.1, .* lower it")]
)
def test_an_unpaired_share_without_a_row_is_named(share, said):
    parts = [Part("pairs", 100, 1 - share), Part("pictures", 100, share), Part("captions", 100, share, beside=True)]
    with pytest.raises(ConfigError, match=rf"^config.data.unpaired_share = {share}: {said} or raise train.batch_size"):
        Sampler(0, 4, parts, DataConfig(unpaired_share=share))
