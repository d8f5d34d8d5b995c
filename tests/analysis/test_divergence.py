from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from detcheck.analysis.divergence import (
    comparable,
    describe,
    first_difference,
    units,
)
from detcheck.completion import first_divergence

from .answers import stored, stored_text

TOKENS = st.lists(st.integers(0, 3), max_size=12)


@given(TOKENS, TOKENS)
def test_first_difference_is_the_naive_one(a: list[int], b: list[int]) -> None:
    assert first_difference(units(stored(a)), units(stored(b))) == first_divergence(a, b)


@given(st.text(max_size=12), st.text(max_size=12))
def test_text_without_tokens_is_compared_by_character(a: str, b: str) -> None:
    found = first_difference(units(stored_text(a)), units(stored_text(b)))
    assert found == first_divergence(a, b)


def test_a_strict_prefix_parts_at_its_own_length() -> None:
    assert first_difference(units(stored([1, 2])), units(stored([1, 2, 3]))) == 2
    assert first_difference(units(stored([])), units(stored([1]))) == 0
    assert first_difference(units(stored([])), units(stored([]))) is None


def test_answers_with_and_without_tokens_are_compared_as_text() -> None:
    with_tokens, without = comparable([stored([1, 2]), stored_text("1 3 ")])
    assert first_difference(units(with_tokens), units(without)) == 2
    assert [v.token_ids is None for v in comparable([stored([1]), stored([2])])] == [False, False]


def test_describe_quotes_what_is_shared_and_what_follows() -> None:
    shared = list(range(20))
    reference, variant = stored([*shared, 50, 51]), stored([*shared, 60, 61, 62, 63, 64, 65, 66])
    described = describe(reference, variant, stored=variant, count=3, position=20, noise=None)
    assert described.context == "12 13 14 15 16 17 18 19 "
    assert described.reference_piece == "50 51 "
    assert described.piece == "60 61 62 63 64 65 "
    assert (described.count, described.variant) == (3, variant)


def test_describe_leaves_the_piece_of_the_shorter_empty() -> None:
    reference, variant = stored([1, 2, 3]), stored([1, 2])
    described = describe(reference, variant, stored=variant, count=1, position=2, noise=None)
    assert (described.context, described.reference_piece, described.piece) == ("1 2 ", "3 ", "")
