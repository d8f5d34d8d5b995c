"""The words that only one answer has are found, and no word is lost."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from detcheck.report.word_diff import MAX_WORDS, DiffPart, word_diff, words_of

WORDS = st.lists(st.sampled_from(["a", "b", " a", " c", "\n\nd", "  ", "", "\ud800"])).map("".join)


def only(parts: Sequence[DiffPart]) -> list[str]:
    return [part.text for part in parts if not part.shared]


@given(st.text() | WORDS, st.text() | WORDS)
def test_the_stretches_add_up_to_the_answers(left: str, right: str) -> None:
    diff = word_diff(left, right)
    assert "".join(part.text for part in diff.left) == left
    assert "".join(part.text for part in diff.right) == right
    shared = [[part.text for part in side if part.shared] for side in (diff.left, diff.right)]
    assert "".join(shared[0]) == "".join(shared[1])
    assert diff.equal is (left == right)


def test_the_words_that_differ_are_marked() -> None:
    diff = word_diff("the field of physics. He was born", "the world of science. He was born")
    assert only(diff.left) == [" field", " physics."]
    assert only(diff.right) == [" world", " science."]


def test_an_answer_that_goes_on_differs_by_the_rest() -> None:
    diff = word_diff("the lamp burned", "the lamp burned all night")
    assert (only(diff.left), only(diff.right)) == ([], [" all night"])


def test_other_white_space_is_another_word() -> None:
    assert not word_diff("a b", "a\nb").equal


def test_long_answers_are_compared_up_to_a_limit() -> None:
    left = " ".join(["x", *(f"l{n}" for n in range(MAX_WORDS)), "same", "tail"])
    right = " ".join(["x", *(f"r{n}" for n in range(MAX_WORDS)), "same", "end"])
    diff = word_diff(left, right)
    assert diff.left[0].text == "x"
    assert diff.left[-1].text.endswith("same tail")
    assert len(words_of(left)) == MAX_WORDS + 3
