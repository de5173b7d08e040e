"""Near-duplicates: the index finds what comparing every pair finds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gold.near_duplicates import NearDuplicates
from gold.parsing import overlap

TEXTS = st.lists(st.sampled_from("a b c d e f".split()), max_size=14).map(" ".join)


@settings(deadline=None, max_examples=300)
@given(st.lists(TEXTS, max_size=12), st.sampled_from([0.0, 0.005, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.999]))
def test_what_overlaps_beyond_the_limit_is_found_and_nothing_else(texts, limit):
    near = NearDuplicates(limit)
    for number, text in enumerate(texts):
        assert near.overlaps(text) == any(overlap(other, text) > limit for other in texts[:number])
        near.add(text)


def test_by_hand():
    """Of ten words each, eight in the same order: 2 * 8 / 20. Words in another order do not count."""
    near = NearDuplicates(0.79)
    near.add("a b c d e f g h i j")
    assert near.overlaps("a b c d e f g h x y") and near.overlaps("A, b, c, d e f g h, x y!")
    assert not near.overlaps("j i h g f e d c b a") and not near.overlaps("a b c d e f g x y z")
    stricter = NearDuplicates(0.8)
    stricter.add("a b c d e f g h i j")
    assert not stricter.overlaps("a b c d e f g h x y")  # at the limit, not beyond it
