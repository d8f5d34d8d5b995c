"""Model output is shown, never obeyed, and what is left out is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcheck.report import text

from . import hostile


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\nb\tc", "a↵b⇥c"),
        ("\x00\x1b[31m", "␀␛[31m"),
        ("\u202egnp.exe", "⟨U+202E⟩gnp.exe"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("a\u200db", "a⟨U+200D⟩b"),
        ("\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f467"),
        ("\ud800", "⟨U+D800⟩"),
        ("plain äöü 日本", "plain äöü 日本"),
    ],
)
def test_invisible_characters_are_shown_by_name(raw: str, shown: str) -> None:
    assert text.visible(raw) == shown


def test_what_is_cut_off_is_counted() -> None:
    assert text.visible("x" * (98_304 + 10), 10) == "x" * 10 + "… (98,304 more characters)"
    assert text.visible("abc", 2) == "ab… (1 more character)"
    assert text.visible("abc", 3) == "abc"


@given(st.text(st.characters()), st.integers(4, 40))
def test_clipped_text_fits_and_can_be_encoded(raw: str, cells: int) -> None:
    shown = text.clip(raw, cells)
    assert text.cell_width(shown) <= cells
    assert "\n" not in shown
    shown.encode("utf-8")


@pytest.mark.parametrize("answer", hostile.ANSWERS)
def test_every_hostile_answer_becomes_one_printable_line(answer: str) -> None:
    for shown in (text.visible(answer), text.tail(answer, 80), text.clip(answer, 30)):
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
    assert [text.count(n, "pass") for n in (1, 1000)] == ["1 pass", "1,000 passes"]
