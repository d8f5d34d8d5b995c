"""The page by its text: everything is there, escaped, and nothing is loaded."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from sweeps import few

from detcheck.analysis.evidence import CONTROL_DID_NOT_DIVERGE
from detcheck.analysis.results import Analysis
from detcheck.report import html, markup
from detcheck.report.view import build_view

from . import hostile
from .sample import drawn

VOID = {"meta", "br", "link", "img", "input", "base"}
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section"),
    *("h1", "h2", "h3", "p", "b", "small", "span", "bdi", "dl", "dt", "dd", "div", "ul", "li"),
    *("details", "summary", "table", "thead", "tbody", "tr", "th", "td", "br", "pre", "code"),
    *("figure", "figcaption", "svg", "g", "path", "text", "defs", "clippath", "rect", "use"),
    *("nav", "a", "h4", "ol", "select", "script", "noscript"),
}


class Reader(HTMLParser):
    """Tags, attributes and text of a page; fails where tags are not balanced."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name in ("href", "xlink:href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def page_of(analysis: Analysis) -> str:
    return html.render(build_view(analysis), drawn(analysis))


@few(
    "name",
    ["story", "eighty", "silent", "texts", "several", "seeded", "attacked", "prefixes"],
    every=6,
)
def test_the_page_holds_nothing_that_runs_or_loads(
    name: str, request: pytest.FixtureRequest
) -> None:
    page = page_of(request.getfixturevalue(name))
    reader = Reader(page)
    assert reader.tags <= ALLOWED
    assert not {name for name in reader.attributes if name.startswith("on")}
    assert not reader.attributes & {"src", "srcset", "action", "data"}
    assert all(link.startswith("#") for link in reader.links)
    assert "default-src 'none'" in page
    page.encode("utf-8")


def test_the_page_answers_the_six_questions(story: Analysis) -> None:
    text = Reader(page_of(story)).text
    for question in ("How many answers?", "Where do they diverge?", "Rounding or a bug?"):
        assert question in text
    for question in ("Does the cure work?", "What does it cost?", "Can I trust this?"):
        assert question in text


def test_the_page_has_every_part(story: Analysis) -> None:
    text = Reader(page_of(story)).text
    for part in ("Where the answers diverge", "By batch size", "Variants", "Branchings"):
        assert part in text
    assert "detcheck run -p 'Write a short story about a lighthouse keeper.' --engine" in text
    assert "avx512_bf16, amx" in text
    for child in story.groups[0].tree.children:
        first = re.escape(child.text.strip().split(" ")[0])
        assert re.search(rf"{child.count} ?{first}", text)


def test_a_dead_control_is_reported_in_the_words_of_the_design(dead: Analysis) -> None:
    text = Reader(html.render(build_view(dead), {})).text
    assert CONTROL_DID_NOT_DIVERGE[1:] in text
    assert text.count("The control shows nothing") >= 2


def test_hostile_answers_are_shown_as_they_are(attacked: Analysis) -> None:
    text = Reader(page_of(attacked)).text
    assert hostile.ATTACKS[1] in text
    assert "(99," in text, "what is cut from a long line is counted"
    assert "\\u202e" in text
    assert "{{ 7 * 191 }}" in text


def test_words_are_capped_and_isolated() -> None:
    assert markup.words("a<b\u202e", 3) == (
        '<bdi class="verbatim">a&lt;b</bdi><span class="more">… (1 more character)</span>'
    )
    assert markup.words("\u202e") == '<bdi class="verbatim"><span class="ctl">\\u202e</span></bdi>'
    assert "\n" in markup.words("a\nb", None, True)
