import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bacl_jax.data.order import PartnerList, PartnerLists, batch_rows, generator, replacement, with_partners


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 90), st.integers(0, 5))
def test_epochs_hold_every_row_once(seed, batch_size, n, epoch):
    steps = range(epoch * n // batch_size, (epoch + 1) * n // batch_size + 1)
    rows = np.concatenate([batch_rows(seed, step, batch_size, n) for step in steps])
    start = epoch * n - steps[0] * batch_size
    assert sorted(rows[start : start + n]) == list(range(n))


def test_large_sources_are_shuffled_without_a_table():
    n = 20_000
    rows = np.concatenate([batch_rows(0, step, 1000, n) for step in range(20)])
    assert sorted(rows) == list(range(n))
    assert abs(np.corrcoef(rows, np.arange(n))[0, 1]) < 0.03
    assert (batch_rows(0, 20, 1000, n) != rows[:1000]).any()


def test_order_is_pure_and_differs_by_seed_step_and_epoch():
    np.testing.assert_array_equal(batch_rows(0, 5, 64, 64), batch_rows(0, 5, 64, 64))
    assert (batch_rows(0, 5, 64, 64) != batch_rows(1, 5, 64, 64)).any()
    assert (batch_rows(0, 5, 64, 64) != batch_rows(0, 6, 64, 64)).any()
    assert list(batch_rows(0, 10**7, 3, 10**6)) == list(batch_rows(0, 10**7, 3, 10**6))  # any step directly, no replay


def test_each_attempt_to_replace_a_row_draws_another():
    drawn = {words: replacement(*words, 10**12) for words in np.ndindex(2, 3, 4, 16)}  # seed, step, position, attempt
    assert len(set(drawn.values())) == len(drawn)
    assert drawn == {words: replacement(*words, 10**12) for words in drawn}
    assert {replacement(0, 0, 0, attempt, 3) for attempt in range(100)} == {0, 1, 2}


def test_first_rows_are_spread_evenly():
    n = 8
    counts = collections.Counter(int(batch_rows(seed, 0, 1, n)[0]) for seed in range(4000))
    chi_square = sum((counts[row] - 500) ** 2 / 500 for row in range(n))
    assert chi_square < 24.3  # 7 degrees of freedom, p = 0.001


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="n = 0"):
        batch_rows(0, 0, 4, 0)


def test_generator_streams_are_apart():
    draws = [generator(*key).random() for key in [(0, 0, 1), (0, 0, 2), (0, 1, 1), (1, 0, 1)]]
    assert len(set(draws)) == 4


def _reference(rows, partners, share, picked):
    """What a replaced row may be: (anchor, allowed values) by the definition."""
    batch_size = len(rows)
    replaced = round(share * batch_size)
    for r in range(batch_size):
        allowed = {rows[r]}
        if r >= batch_size - replaced:
            valid = [p for p in partners[rows[r % (batch_size - replaced)]] if p >= 0]
            allowed = set(valid) or allowed
        assert picked[r] in allowed


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 0.9), st.data())
def test_partners_replace_the_last_rows(seed, step, share, data):
    n, k, batch_size = 20, 3, 12
    partners = np.array(data.draw(st.lists(st.lists(st.integers(-1, n - 1), min_size=k, max_size=k), min_size=n, max_size=n)), np.int32)
    rows = batch_rows(seed, step, batch_size, n)
    before = rows.copy()
    picked = with_partners(rows, partners, share, seed, step)
    _reference(rows, partners, share, picked)
    np.testing.assert_array_equal(rows, before)
    np.testing.assert_array_equal(picked, with_partners(rows, partners, share, seed, step))


def test_every_partner_slot_is_drawn_about_equally():
    n, batch_size = 100, 100
    partners = np.tile(np.array([[-1, 7, -1, 8, 9]], np.int32), (n, 1))
    rows = np.arange(batch_size)
    picked = np.concatenate([with_partners(rows, partners, 0.5, 0, step)[50:] for step in range(60)])
    counts = collections.Counter(picked.tolist())
    assert set(counts) == {7, 8, 9}
    assert all(abs(count - 1000) < 120 for count in counts.values())  # 4.6 standard deviations


def test_share_of_partners():
    rows, partners = np.arange(10), np.full((10, 2), 99, np.int32)
    assert (with_partners(rows, partners, 0.0, 0, 0) == rows).all()
    assert (with_partners(rows, partners, 0.26, 0, 0) == 99).sum() == 3
    assert (with_partners(rows, partners, 1.0, 0, 0) == 99).sum() == 9  # one anchor stays
    with pytest.raises(ValueError, match=r"\[0, 1\], found 1.5"):
        with_partners(rows, partners, 1.5, 0, 0)


def _list(step):
    return PartnerList(step, np.full((2, 1), step, np.int32))


def test_lists_in_force_and_live():
    lists = PartnerLists()
    for step in (30, 10, 20):
        lists.put(_list(step))
    assert lists.at(9) is None
    assert lists.at(10).active_from == lists.at(19).active_from == 10
    assert lists.at(25).active_from == 20
    assert [each.active_from for each in lists.live(5)] == [10, 20, 30]
    assert [each.active_from for each in lists.live(20)] == [20, 30]
    assert [each.active_from for each in lists.live(99)] == [30]
    lists.drop_before(20)
    assert lists.at(19) is None
    assert [each.active_from for each in lists.live(0)] == [20, 30]


def test_a_list_that_comes_too_late_is_refused():
    lists = PartnerLists()
    lists.at(12)
    with pytest.raises(RuntimeError, match=r"step 12 came after step 12.*list_delay"):
        lists.put(_list(12))
    lists.put(_list(13))


def test_bank_slots_scatter_to_training_rows():
    index = np.array([2, -1, 0, 2])
    partners = np.array([[1, 1], [5, 5], [3, -1], [0, 3]])
    table = PartnerList.from_bank(7, index, partners, 4).partners
    np.testing.assert_array_equal(table, [[3, -1], [-1, -1], [0, 3], [-1, -1]])
    assert table.dtype == np.int32
