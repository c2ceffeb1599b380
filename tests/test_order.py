import collections
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bacl_jax.data.order import PARTNER, PartnerList, PartnerLists, batch_rows, generator, replacement, with_partners


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


def _dense(index, partners, n):
    """A list as the table of all n training rows: the reference that a list must equal."""
    table = np.full((n, partners.shape[1]), -1, np.int32)
    for slot in np.flatnonzero(index >= 0):
        table[index[slot]] = partners[slot]
    return table


def _mixed(rows, table, share, seed, step):
    """`with_partners` by its definition, out of the table of all training rows."""
    replaced = min(round(share * len(rows)), len(rows) - 1)
    draw, result = generator(seed, step, PARTNER).random(len(rows)), rows.copy()
    for r in range(len(rows) - replaced, len(rows)):
        valid = [partner for partner in table[rows[r % (len(rows) - replaced)]] if partner >= 0]
        if valid:
            result[r] = valid[int(draw[r] * len(valid))]
    return result


def _of_table(table, active_from=0):
    return PartnerList.from_bank(active_from, np.arange(len(table)), table)


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1), st.integers(1, 4), st.integers(0, 30), st.data())
def test_a_list_is_the_table_of_all_rows(seed, step, share, k, slots, data):
    n, batch_size = 20, 12
    index = np.array(data.draw(st.lists(st.integers(-1, n - 1), min_size=slots, max_size=slots)), np.int32)
    drawn = st.lists(st.lists(st.integers(-1, n - 1), min_size=k, max_size=k), min_size=slots, max_size=slots)
    partners = np.array(data.draw(drawn), np.int32).reshape(slots, k)
    found, table = PartnerList.from_bank(0, index, partners), _dense(index, partners, n)
    np.testing.assert_array_equal(found.of(np.arange(n)), table, strict=True)
    np.testing.assert_array_equal(found.rows, np.flatnonzero((table >= 0).any(axis=1)), strict=True)

    rows = batch_rows(seed, step, batch_size, n)
    before = rows.copy()
    np.testing.assert_array_equal(with_partners(rows, found, share, seed, step), _mixed(rows, table, share, seed, step), strict=True)
    np.testing.assert_array_equal(rows, before)


def test_every_partner_slot_is_drawn_about_equally():
    n, batch_size = 100, 100
    partners = _of_table(np.tile(np.array([[-1, 7, -1, 8, 9]], np.int32), (n, 1)))
    rows = np.arange(batch_size)
    picked = np.concatenate([with_partners(rows, partners, 0.5, 0, step)[50:] for step in range(60)])
    counts = collections.Counter(picked.tolist())
    assert set(counts) == {7, 8, 9}
    assert all(abs(count - 1000) < 120 for count in counts.values())  # 4.6 standard deviations


def test_share_of_partners():
    rows, partners = np.arange(10), _of_table(np.full((10, 2), 99, np.int32))
    assert (with_partners(rows, partners, 0.0, 0, 0) == rows).all()
    assert (with_partners(rows, partners, 0.26, 0, 0) == 99).sum() == 3
    assert (with_partners(rows, partners, 1.0, 0, 0) == 99).sum() == 9  # one anchor stays
    with pytest.raises(ValueError, match=r"\[0, 1\], found 1.5"):
        with_partners(rows, partners, 1.5, 0, 0)


def _list(step):
    return _of_table(np.full((2, 1), step, np.int32), step)


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


def test_bank_slots_become_training_rows():
    index = np.array([2, -1, 0, 2, 3, 1, 3])
    partners = np.array([[1, 1], [5, 5], [3, -1], [0, 3], [1, 2], [-1, -1], [-1, -1]])
    found = PartnerList.from_bank(7, index, partners)
    np.testing.assert_array_equal(found.rows, np.array([0, 2], np.int64), strict=True)  # the last slot of row 3 has no partners
    np.testing.assert_array_equal(found.partners, np.array([[3, -1], [0, 3]], np.int32), strict=True)


@pytest.mark.parametrize("rows", [[3, 1], [1, 1], [-1, 2]])
def test_the_rows_of_a_list_ascend(rows):
    with pytest.raises(ValueError, match=r"must be sorted, unique and at least 0, found \["):
        PartnerList(0, np.array(rows, np.int64), np.zeros((2, 1), np.int32))


def test_a_list_is_as_large_as_the_bank_whatever_the_training_rows():
    """400 million rows in a table of all would take 51 GB."""
    slots, k, sizes = 6144, 32, set()
    for n in (10_000, 400_000_000):
        index = np.linspace(0, n - 1, slots).astype(np.int32)
        partners = np.tile(index[:, None], (1, k))
        tracemalloc.start()
        found = PartnerList.from_bank(0, index, partners)
        taken = with_partners(index[:4096].astype(np.int64), found, 0.25, 0, 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        sizes.add(found.rows.nbytes + found.partners.nbytes)
        assert peak < 8 * 2**20
        np.testing.assert_array_equal(taken[3072:], index[:1024])
    assert sizes == {slots * 8 + slots * k * 4}
