"""Untrusted words: visible, on one line, and never markup."""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from html.parser import HTMLParser

import cmarkgfm
import pytest
from cmarkgfm.cmark import Options
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sweeps import few

from detcheck.text import (
    amount,
    count,
    escape_markdown,
    one_line,
    quoted,
    quoted_end,
    signed,
    verb,
)

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


@pytest.mark.parametrize(
    ("noun", "several"),
    [
        ("answer", "2 answers"),
        ("pass", "2 passes"),
        ("batch", "2 batches"),
        ("reply", "2 replies"),
        ("log-probability", "2 log-probabilities"),
        ("day", "2 days"),
    ],
)
def test_a_count_agrees_with_its_noun(noun, several):
    assert (count(1, noun), count(2, noun)) == (f"1 {noun}", several)
    assert count(0, noun) == several.replace("2", "0")


@pytest.mark.parametrize(
    ("number", "shown"),
    [(1.0, "+1 point"), (-1.0004, "-1 point"), (1.25, "+1.25 points"), (0, "+0 points")],
)
def test_an_amount_agrees_as_it_is_shown(number, shown):
    assert signed(number, "point") == shown
    assert amount(abs(number), "point") == shown[1:]


def test_a_verb_agrees_with_its_number():
    assert [verb(number, "differs", "differ") for number in (0, 1, 2)] == [
        "differ",
        "differs",
        "differ",
    ]


def test_long_text_is_cut():
    assert quoted("word " * 30_000, 11) == '"word word…"'
    assert quoted("short") == '"short"'


def on_github(markdown: str) -> str:
    """HTML as GitHub's own parser makes it, raw HTML included."""
    html: str = cmarkgfm.github_flavored_markdown_to_html(markdown, Options.CMARK_OPT_UNSAFE)
    return html


class Shown(HTMLParser):
    """What a page shows: `pieces` of text as comments and tags part them, and the `tags`."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


ALPHABET = st.one_of(
    st.sampled_from(
        [
            *string.punctuation,
            *("a", "B", "1", " ", "  ", "é", "漢"),
            *("http", "www.", "://", "a.bc", "&lt;", "&#35;", "mailto:", "<b>", "-->", "- ", "1. "),
            *("](x)", "[x]: y", "@octocat", "#12", "GH-3", "**", "__", "~~", "```", "\\|", "---"),
        ]
    ),
    st.characters(),
)
HOSTILE = st.lists(ALPHABET, max_size=12).map("".join)


PLACES = {
    "{}": ["p"],
    "- {}": ["ul", "li"],
    "- seen: {} there": ["ul", "li"],
    "## <code>{}</code>": ["h2", "code"],
    "| a | <code>{}</code> |\n|---|---|": ["table", "thead", "tr", "th", "th", "code"],
    "| a | {} |\n|---|---|": ["table", "thead", "tr", "th", "th"],
}


@few("place", PLACES, every=4)
@given(text=HOSTILE)
@example(text="# a")
@example(text="1) a")
@example(text="---")
@example(text="- - -")
@example(text="===")
@example(text="##")
@example(text="    a")
@example(text="    # a")
@example(text="a\\")
@example(text="_a_b_ __c__ d__e")
@example(text="me@example.com")
def test_markdown_shows_the_text_and_nothing_else(place, text):
    shown = one_line(text)
    assume(shown.strip(" "))
    page = Shown(on_github(place.format(escape_markdown(shown))))
    assert page.tags == PLACES[place]
    around = Shown(on_github(place.format("PLACE"))).text
    assert page.text.split() == around.replace("PLACE", shown).split()


@given(HOSTILE)
@example("#12 &#12 @a GH-1 gh-2")
def test_nobody_is_mentioned(text):
    """GitHub looks for mentions and issues in each piece of text, where no entity is left."""
    for piece in Shown(on_github(f"- {escape_markdown(text)}")).pieces:
        assert not re.search(r"@\w|#\d|\bGH-\d", piece, re.IGNORECASE)


@pytest.mark.parametrize(
    ("text", "tags"),
    [("**a**", ["strong"]), ("www.evil.com", ["a"]), ("me@example.com", ["a"]), ("<b>", ["b"])],
)
def test_the_same_page_catches_what_is_not_escaped(text, tags):
    assert Shown(on_github(f"- {text}")).tags == ["ul", "li", *tags]


@pytest.mark.parametrize(
    "text",
    [
        "SmolLM2-135M-Instruct (embedded)",
        'batches of up to 64 of 64 asked, counted: 0.34 % can differ (95 %); "quoted"',
        "3.11.7",
        "-1 and --flag",
        "tokens_per_second = 3 + 4 > 6, isn't it? {x} ^ AT&T C:\\dir 100%!",
    ],
)
def test_markdown_reads_well_where_nothing_could_begin(text):
    assert escape_markdown(text) == text


def test_the_end_of_a_long_text_is_quoted() -> None:
    assert quoted_end("short") == '"short"'
    assert quoted_end("a" * 50 + " before it parts", 16) == '"…before it parts"'
    assert quoted_end("a\x1bb") == '"a\\x1bb"'
