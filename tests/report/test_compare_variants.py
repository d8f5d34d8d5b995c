"""Any two variants can be compared, by a script that nothing on the page can replace."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from detcheck.analysis.results import Analysis
from detcheck.report import html
from detcheck.report.view import build_view
from detcheck.report.write import write_report

from .browser import Page

DESKTOP = (1200, 800)


def compared(page: Page, left: int, right: int) -> list[list[str]]:
    """[words only the left has, words only the right has] once two variants are chosen."""
    page.evaluate(
        f"(() => {{ const selects = document.querySelectorAll('.compare select');"
        f"[{left}, {right}].forEach((index, side) => {{ selects[side].selectedIndex = index;"
        "selects[side].dispatchEvent(new Event('change')); }); })()"
    )
    found = page.evaluate(
        "[...document.querySelectorAll('.compare p')]"
        ".map(p => [...p.querySelectorAll('.only')].map(one => one.textContent.trim()))"
    )
    assert isinstance(found, list)
    return found


@pytest.mark.slow
def test_any_two_variants_are_compared_word_by_word(
    page: Page, story: Analysis, tmp_path: Path
) -> None:
    page.open(write_report(story, tmp_path, ["html"])[0], *DESKTOP)
    names = page.evaluate("[...document.querySelector('.compare select').options].map(o => o.text)")
    stock = story.groups[0]
    assert names == [
        f"stock, variant {one.rank}: {one.count} completion{'s' * (one.count > 1)}"
        for one in stock.variants
    ]
    for left, right in ((0, 1), (1, 0), (2, 5)):
        ours = stock.variants[left].variant.text.split()
        theirs = stock.variants[right].variant.text.split()
        only_left, only_right = compared(page, left, right)
        assert only_left
        assert all(set(words.split()) <= set(ours) for words in only_left)
        assert all(set(words.split()) <= set(theirs) for words in only_right)
        shown = page.evaluate("[...document.querySelectorAll('.compare p')].map(p => p.innerText)")
        assert [text.split() for text in shown] == [ours, theirs]
    assert compared(page, 3, 3) == [[], []]


@pytest.mark.slow
def test_hostile_answers_are_compared_as_text(
    page: Page, attacked: Analysis, tmp_path: Path
) -> None:
    page.open(write_report(attacked, tmp_path, ["html"])[0], *DESKTOP)
    options = page.evaluate("document.querySelector('.compare select').options.length")
    assert options > 10
    for index in range(options):
        compared(page, index, 0)
    assert page.evaluate("window.pwned === undefined")
    assert page.evaluate("document.querySelectorAll('.compare p *:not(bdi)').length") == 0
    assert not page.methods("Log.entryAdded"), "the content policy had nothing to block"


@pytest.mark.slow
def test_another_script_is_blocked(page: Page, story: Analysis, tmp_path: Path) -> None:
    path = write_report(story, tmp_path, ["html"])[0]
    text = path.read_text("utf-8")
    path.write_text(text.replace("</header>", "<script>window.pwned = 1</script></header>"))
    page.open(path, *DESKTOP)
    assert page.evaluate("window.pwned === undefined")
    assert page.methods("Log.entryAdded")
    path.write_text(text.replace("const MAX_WORDS", "window.pwned = 1;\nconst MAX_WORDS"))
    page.open(path, *DESKTOP)
    assert page.evaluate("window.pwned === undefined")
    assert page.evaluate("document.querySelector('.compare').hidden")


def test_the_policy_names_just_the_script_of_the_page(story: Analysis) -> None:
    page = html.render(build_view(story), {})
    (script,) = re.findall("<script>(.*?)</script>", page, flags=re.DOTALL)
    assert f"script-src '{html.script_hash(script)}';" in page


def test_the_cure_stands_beside_stock_word_by_word(story: Analysis) -> None:
    beside = build_view(story).prompts[0].beside
    assert beside is not None
    assert beside.diff.equal, "both answer alike at batch size 1"
    assert beside.sentence.endswith("is stock's answer at that batch size.")


def test_the_cure_with_another_answer_is_marked_and_named(story: Analysis) -> None:
    stock, invariant = story.groups
    second = next(one for one in stock.variants if not one.is_reference)
    other = dataclasses.replace(second, is_reference=True, count=48, rank=1, first_divergence=None)
    changed = dataclasses.replace(invariant, variants=(other,))
    analysis = dataclasses.replace(story, groups=(stock, changed))
    beside = build_view(analysis).prompts[0].beside
    assert beside is not None
    assert f"is variant {second.rank} of stock: stock gave it {second.count} of 48 times" in (
        beside.sentence
    )
    page = html.render(build_view(analysis), {})
    assert '<span class="only">' in page.split("The cure's answer beside stock's")[1]
