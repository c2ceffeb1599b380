import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from bacl_jax.data import halftrue
from bacl_jax.data.halftrue import ATTRIBUTES, HalfTrueIndex, attribute_of


def _brute_force(captions):
    for (i, a), (j, b) in itertools.combinations(enumerate(captions), 2):
        a, b = a.split(), b.split()
        differing = [p for p, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
        if len(a) == len(b) > 1 and len(differing) == 1:
            yield i, j, differing[0]


@settings(deadline=None)
@given(st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(" ".join)))
def test_index_is_the_definition(captions):
    captions = tuple(sorted(captions))
    index = HalfTrueIndex(captions)
    expected = list(_brute_force(captions))
    assert sorted((i, j, p) for i, j, p, _ in index.pairs()) == sorted(expected)
    assert len(index) == len(expected)
    for i in range(len(captions)):
        assert {(j, p) for j, p, _ in index.neighbours(i)} == {(j, p) for a, j, p in expected if a == i} | {
            (a, p) for a, j, p in expected if j == i
        }


def test_single_words_have_no_neighbours():
    assert len(HalfTrueIndex(("cat", "dog"))) == 0


def test_attributes():
    cases = {
        ("woman running dark skin tone", "woman running medium-light skin tone"): "skin tone",
        ("woman running", "man running"): "gender/age",
        ("older person", "child person"): "gender/age",
        ("man red hair", "man curly hair"): "hair",
        ("person blond hair", "person bald hair"): "hair",
        ("left arrow", "right arrow"): "direction",
        ("red circle", "blue circle"): "colour",
        ("dark circle", "light circle"): "other",
        ("two o’clock", "three o’clock"): "number",
        ("keycap 4", "keycap 7"): "number",
        ("cat face", "dog face"): "other",
        ("red face", "cat face"): "other",
    }
    for (a, b), attribute in cases.items():
        a, b = a.split(), b.split()
        position = next(p for p in range(len(a)) if a[p] != b[p])
        assert attribute_of(a, b, position) == attribute_of(b, a, position) == attribute
        assert attribute in ATTRIBUTES


def test_words_that_a_mirror_makes_wrong():
    turned = [
        word for word in halftrue._VOCABULARY["direction"] if any(side in word for side in ("left", "right", "east", "west", "clock"))
    ]
    assert len(turned) > 15
    for word in (*turned, "Left,", "left-hand", "western", "anti-clockwise", "leftmost", "(right)"):
        assert halftrue.names_side(f"a {word} turn"), word
    for word in ("up", "north", "bright", "leftover", "rights", "nest", "wester", "clock"):
        assert not halftrue.names_side(f"a {word} turn"), word
