"""The Markdown renders to text, code and tables, whatever a model said."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from detcheck.analysis.evidence import CONTROL_DID_NOT_DIVERGE
from detcheck.analysis.results import Analysis
from detcheck.report import markdown
from detcheck.report.view import build_view

from . import hostile
from .test_html import Reader

FIGURES = {0: ["figures/prefix_tree.svg"]}
OURS = {
    *("h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "strong", "code", "ul"),
    *("li", "pre", "a", "details", "summary"),
}


def document_of(analysis: Analysis) -> str:
    return markdown.render(build_view(analysis), FIGURES)


def rendered(analysis: Analysis) -> str:
    document = document_of(analysis)
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(document))


@pytest.mark.parametrize(
    "name", ["story", "eighty", "silent", "texts", "several", "seeded", "attacked"]
)
def test_only_our_own_markup_comes_out(name: str, request: pytest.FixtureRequest) -> None:
    reader = Reader(rendered(request.getfixturevalue(name)))
    assert reader.tags <= OURS
    assert reader.attributes <= {"href", "class", "style"}


def test_rows_of_a_table_have_its_columns(attacked: Analysis) -> None:
    for table in re.findall(r"<table>.*?</table>", rendered(attacked), flags=re.DOTALL):
        columns = len(re.findall("<th[ >]", table))
        rows = re.findall(r"<tr>(.*?)</tr>", table, flags=re.DOTALL)
        assert all(len(re.findall("<t[hd][ >]", row)) == columns for row in rows)


def test_hostile_answers_survive_as_text(attacked: Analysis) -> None:
    text = Reader(rendered(attacked)).text
    for attack in (hostile.ATTACKS[1], "hidden \u05e9\u05dc\u05d5\u05dd", "{{ 7 * 191 }}"):
        assert attack in text


def test_mentions_links_and_mathematics_are_entities_outside_fences(attacked: Analysis) -> None:
    document = document_of(attacked)
    outside = re.sub(r"^(`{3,}).*?^\1$", "", document, flags=re.DOTALL | re.MULTILINE)
    for live in ("@octocat", "$x", "http://evil", "www.evil", "<script", "<img"):
        assert live not in outside


def test_a_fence_is_longer_than_any_run_of_backticks() -> None:
    assert markdown.fenced("a ```` b") == "`````\na ```` b\n`````"


def test_the_tree_is_drawn_with_words_and_counts(story: Analysis) -> None:
    document = document_of(story)
    for child in story.groups[0].tree.children:
        assert re.search(rf"[├└]─ +{child.count}  {re.escape(child.text.strip()[:20])}", document)


def test_a_dead_control_is_reported(dead: Analysis) -> None:
    assert CONTROL_DID_NOT_DIVERGE[1:] in Reader(rendered(dead)).text


def test_it_stays_small_enough_for_a_comment(eighty: Analysis) -> None:
    assert len(document_of(eighty)) < 65_536
