"""Near-duplicates: the index finds what comparing every pair finds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gold.near_duplicates import NearDuplicates
from gold.parsing import overlap

TEXTS = st.lists(st.sampled_from("a b c d e f".split()), max_size=14).map(" ".join)


@settings(deadline=None, max_examples=300)
@given(st.lists(TEXTS, max_size=12), st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.999]))
def test_the_first_text_beyond_the_limit_is_found(texts, limit):
    near = NearDuplicates(limit)
    for number, text in enumerate(texts):
        beyond = [i for i in range(number) if overlap(texts[i], text) > limit]
        assert near.find(text) == (beyond[0] if beyond else None)
        near.add(text)


def test_by_hand():
    """Of ten words each, eight in the same order: 2 * 8 / 20. Words in another order do not count."""
    near = NearDuplicates(0.79)
    near.add("a b c d e f g h i j")
    assert near.find("a b c d e f g h x y") == 0 and near.find("A, b, c, d e f g h, x y!") == 0
    assert near.find("j i h g f e d c b a") is None and near.find("a b c d e f g x y z") is None
    stricter = NearDuplicates(0.8)
    stricter.add("a b c d e f g h i j")
    assert stricter.find("a b c d e f g h x y") is None  # at the limit, not beyond it
