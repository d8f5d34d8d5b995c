"""Model output is shown, never obeyed, and what is left out is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcheck.report import text
from detcheck.text import count

from . import hostile


@given(st.text(st.characters()), st.integers(4, 40))
def test_clipped_text_fits_and_can_be_encoded(raw: str, cells: int) -> None:
    shown = text.clip(raw, cells)
    assert text.cell_width(shown) <= cells
    assert "\n" not in shown
    shown.encode("utf-8")


@pytest.mark.parametrize("answer", hostile.ANSWERS)
def test_every_hostile_answer_becomes_one_printable_line(answer: str) -> None:
    for shown in (text.tail(answer, 80), text.clip(answer, 30)):
        assert len(shown.splitlines()) == 1
        shown.encode("utf-8")


def test_tail_begins_at_a_word() -> None:
    assert text.tail("one two three four", 11) == "… three four"
    assert text.tail("short", 10) == "short"


def test_alternatives_that_differ_in_their_first_space_show_it() -> None:
    assert text.same_start([" town", " village"]) == ["town", "village"]
    assert text.same_start([" town", "town"]) == ["␣town", "town"]


@pytest.mark.parametrize(
    ("share", "shown"), [(0, "0"), (0.0001, "< 0.1"), (0.5, "50.0"), (0.9999, "> 99.9"), (1, "100")]
)
def test_percentages_never_round_to_nothing_or_all(share: float, shown: str) -> None:
    assert text.percent(share).replace("\u00a0", " ") == f"{shown} %"


def test_numbers() -> None:
    shown = [text.number(value) for value in (None, float("nan"), 0, 0.0123456, 12.345, 12345.6)]
    assert shown == ["–", "–", "0", "0.0123", "12.3", "12,346"]
    assert [count(n, "pass") for n in (1, 1000)] == ["1 pass", "1,000 passes"]
    assert [text.factor(value) for value in (None, 1.236)] == ["–", "1.24×"]
    assert [text.came_back(*pair) for pair in ((4, 4), (999, 1000))] == ["4", "999 of 1,000"]
