"""Untrusted words: visible, on one line, and never markup."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcheck.text import JOINERS, escape_markdown, one_line, quoted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢字 😀", "plain é 漢字 😀"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[2J\x00\x9b", "\\x1b[2J\\x00\\x9b"),
        ("\u202eabc\u2066\u2028", "\\u202eabc\\u2066\\u2028"),
        ("\ud800", "\\ud800"),
        ("👩\u200d🔬", "👩\u200d🔬"),
    ],
)
def test_what_cannot_be_seen_is_shown(text, shown):
    assert one_line(text) == shown


@given(st.text())
def test_nothing_hidden_is_left_and_it_encodes(text):
    shown = one_line(text)
    hidden = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert hidden <= set(JOINERS)
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


def test_long_text_is_cut():
    assert quoted("word " * 30_000, 11) == '"word word…"'
    assert quoted("short") == '"short"'


@given(st.text())
def test_markdown_has_no_punctuation_left_but_that_of_entities(text):
    assert not set(escape_markdown(text)) & set("<>|`*_[]()!@:/.\\~+-=\"'{}$^\n")
