import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bacl_jax.data.cache import Cache


def test_the_oldest_leave_first_and_the_newest_stays():
    cache, made = Cache(10), []

    def get(key, size=4):
        return cache.get(key, lambda: (made.append(key) or key, size))

    assert [get(key) for key in "abacab"] == list("abacab")
    assert made == ["a", "b", "c", "b"]  # c drove out b, which was asked for longer ago than a
    assert get("large", 100) == "large"
    assert get("large") == "large"
    assert made[4:] == ["large"]
    get("a")
    get("b")
    assert made[5:] == ["a", "b"]
    with pytest.raises(ValueError, match="limit of at least 1, found 0"):
        Cache(0)


def test_what_fails_is_tried_again():
    cache = Cache(10)
    with pytest.raises(ZeroDivisionError):
        cache.get(1, lambda: (1 // 0, 1))
    assert cache.get(1, lambda: ("good", 1)) == "good"


def test_threads_share_what_one_of_them_makes():
    cache, made = Cache(10**6), []

    def make(key):
        made.append(key)
        time.sleep(0.02)
        return key, 1

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda i: cache.get(i % 4, lambda: make(i % 4)), range(64))) == [i % 4 for i in range(64)]
    assert sorted(made) == [0, 1, 2, 3]


def test_the_limit_holds_under_threads_and_failures():
    cache, held, most = Cache(20), set(), [0]
    lock = threading.Lock()

    class Held:
        """Counts how many of its kind are alive."""

        def __init__(self):
            with lock:
                held.add(id(self))
                most[0] = max(most[0], len(held))

        def __del__(self):
            held.discard(id(self))

    def ask(draw):
        for key in draw:
            try:
                cache.get(int(key), lambda key=key: (Held(), 1 if key % 7 else 1 // 0))
            except ZeroDivisionError:
                assert key % 7 == 0

    draws = np.random.default_rng(0).integers(0, 200, (8, 2000))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, draws))
    assert len(held) == 20
    assert most[0] <= 20 + 3 * 8  # and those that the threads make or let go at the moment


def test_a_copy_starts_empty():
    cache = Cache(3)
    cache.get("a", lambda: (1, 1))
    assert copy.deepcopy(cache).get("a", lambda: (2, 1)) == 2
