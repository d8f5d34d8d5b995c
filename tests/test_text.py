"""Untrusted words: visible, on one line, and never markup."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcheck.text import escape_markdown, one_line, quoted

HIDING = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
"""Unicode's categories of control, format, private, surrogate and separating characters."""
JOINERS = "\u200c\u200d"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain äöü é 漢字 日本 😀", "plain äöü é 漢字 日本 😀"),
        ("a\nb\tc\r", "a↵b⇥c\\r"),
        ("\x1b[2J\x00\x9b", "\\x1b[2J\\x00\\x9b"),
        ("\u202eabc\u2066\u2028", "\\u202eabc\\u2066\\u2028"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("a\u200db", "a\\u200db"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_cannot_be_seen_is_shown(text, shown):
    assert one_line(text) == shown


def test_no_character_that_hides_is_left_alone():
    hiding = {c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) in HIDING}
    assert [c for c in hiding if one_line(c) == c] == []


@given(st.text())
def test_nothing_hidden_is_left_and_it_encodes(text):
    shown = one_line(text)
    assert {c for c in shown if unicodedata.category(c) in HIDING} <= set(JOINERS)
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


def test_what_is_cut_off_is_counted():
    assert one_line("x" * (98_304 + 10), 10) == "x" * 10 + "… (98,304 more characters)"
    assert one_line("abc", 2) == "ab… (1 more character)"
    assert one_line("abc", 3) == "abc"


def test_long_text_is_cut():
    assert quoted("word " * 30_000, 11) == '"word word…"'
    assert quoted("short") == '"short"'


@given(st.text())
def test_markdown_has_no_punctuation_left_but_that_of_entities(text):
    assert not set(escape_markdown(text)) & set("<>|`*_[]()!@:/.\\~+-=\"'{}$^\n")
