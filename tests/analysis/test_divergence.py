from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from detcheck.analysis.divergence import comparable, divergences, first_difference, units
from detcheck.analysis.results import CONFIDENT, NEAR_TIE, Divergence
from detcheck.completion import first_divergence
from detcheck.rundir import StoredVariant

from .answers import counted, stored, stored_text

TOKENS = st.lists(st.integers(0, 3), max_size=12)


@given(TOKENS, TOKENS)
def test_first_difference_is_the_naive_one(a: list[int], b: list[int]) -> None:
    assert first_difference(units(stored(a)), units(stored(b))) == first_divergence(a, b)


@given(st.text(max_size=12), st.text(max_size=12))
def test_text_without_tokens_is_compared_by_character(a: str, b: str) -> None:
    found = first_difference(units(stored_text(a)), units(stored_text(b)))
    assert found == first_divergence(a, b)


def test_a_strict_prefix_diverges_at_its_own_length() -> None:
    assert first_difference(units(stored([1, 2])), units(stored([1, 2, 3]))) == 2
    assert first_difference(units(stored([])), units(stored([1]))) == 0
    assert first_difference(units(stored([])), units(stored([]))) is None


def test_answers_with_and_without_tokens_are_compared_as_text() -> None:
    with_tokens, without = comparable([stored([1, 2]), stored_text("1 3 ")])
    assert first_difference(units(with_tokens), units(without)) == 2
    assert [v.token_ids is None for v in comparable([stored([1]), stored([2])])] == [False, False]


def leaves_at(
    position: int, reference: StoredVariant, *others: StoredVariant, noise: float | None = None
) -> tuple[Divergence, ...]:
    """The divergences of `others`, which leave the reference at `position`."""
    variants = [counted(reference, 5, is_reference=True)]
    for rank, other in enumerate(others, start=2):
        variants.append(counted(other, 3, rank=rank, first_divergence=position))
    return divergences(variants, noise)


def test_a_divergence_quotes_what_is_shared_and_what_follows() -> None:
    shared = list(range(20))
    variant = stored([*shared, 60, 61, 62, 63, 64, 65, 66])
    [found] = leaves_at(20, stored([*shared, 50, 51]), variant)
    assert found.context == "12 13 14 15 16 17 18 19 "
    assert found.reference_piece == "50 51 "
    assert found.piece == "60 61 62 63 64 65 "
    assert (found.count, found.variant) == (3, variant)


def test_the_next_words_of_the_shorter_answer_are_empty() -> None:
    [found] = leaves_at(2, stored([1, 2, 3]), stored([1, 2]))
    assert (found.context, found.reference_piece, found.piece) == ("1 2 ", "3 ", "")


def test_variants_that_leave_together_share_a_flip() -> None:
    """Two leave by token 8 and one by token 9: one flip for each of the two branches."""
    reference = stored([1, 7, 0], gaps=[3, 0.25, 3], runners_up=[0, 8, 0])
    eights = [stored([1, 8, end], gaps=[3, gap, 3]) for end, gap in ((1, 0.125), (2, 0.0))]
    nine = stored([1, 9], gaps=[3, 5.0])
    found = leaves_at(1, reference, *eights, nine, noise=0.5)
    assert [d.flip.kind for d in found] == [NEAR_TIE, NEAR_TIE, CONFIDENT]
    assert found[0].flip is found[1].flip
    assert [d.flip.runner_up_won for d in found] == [True, True, False]
