"""Reports of many prompts in a real browser: short, quick to open, every prompt found."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from detcheck.analysis.results import Analysis
from detcheck.report import html
from detcheck.report.html import MAX_SECTIONS
from detcheck.report.overview import overview
from detcheck.report.view import build_view
from detcheck.report.write import write_report

from .browser import Page
from .suite import suite_of

DESKTOP = (1200, 800)
PHONE = (390, 740)
MOST_BYTES = 5_000_000
MOST_SECONDS = 2.0


def height(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollHeight"))


def is_shown(page: Page, anchor: str) -> bool:
    """Whether the body of a prompt's section is laid out and in the window."""
    return bool(
        page.evaluate(
            f"(() => {{ const body = document.getElementById('{anchor}');"
            "const box = body.getBoundingClientRect();"
            "return body.closest('details').open && body.checkVisibility()"
            "&& box.height > 40 && box.top >= 0 && box.top < innerHeight; })()"
        )
    )


@pytest.mark.slow
def test_twenty_prompts_are_a_short_page(page: Page, several: Analysis, tmp_path: Path) -> None:
    page.open(write_report(suite_of(several, 20), tmp_path, ["html"])[0], *DESKTOP)
    assert height(page) < 12_000
    page.open(tmp_path / "report.html", *PHONE)
    assert height(page) < 25_000


@pytest.mark.slow
def test_every_row_leads_to_the_section_of_its_prompt(
    page: Page, several: Analysis, tmp_path: Path
) -> None:
    suite = suite_of(several, MAX_SECTIONS + 10)
    path = write_report(suite, tmp_path, ["html"])[0]
    links = re.findall(r'<a href="#(prompt-\d+)">', path.read_text("utf-8"))
    assert {f"prompt-{number}" for number in range(1, MAX_SECTIONS + 11)} <= set(links)
    for anchor in (links[0], links[MAX_SECTIONS - 1], links[-1]):
        page.open(path, *DESKTOP)
        page.evaluate("document.querySelectorAll('.more-rows').forEach(one => one.open = true)")
        assert not is_shown(page, anchor)
        page.evaluate(f"document.querySelector('.prompt-table a[href=\"#{anchor}\"]').click()")
        assert is_shown(page, anchor)


@pytest.mark.slow
def test_a_thousand_prompts_open_in_two_seconds(
    page: Page, several: Analysis, tmp_path: Path
) -> None:
    path = write_report(suite_of(several, 1000), tmp_path, ["html"])[0]
    assert path.stat().st_size < MOST_BYTES
    page.open(path, *DESKTOP)  # the browser's own start is not the page's
    start = time.monotonic()
    page.open(path, *DESKTOP)
    height(page)
    assert time.monotonic() - start < MOST_SECONDS
    assert height(page) < 15_000


@pytest.mark.sweep
def test_a_thousand_varied_prompts_with_long_answers_stay_under_five_megabytes(
    eighty: Analysis,
) -> None:
    view = build_view(suite_of(eighty, 1000))
    assert len(html.render(view, {}).encode("utf-8")) < MOST_BYTES


def test_quiet_prompts_are_folded_and_the_most_varied_is_open(several: Analysis) -> None:
    suite = suite_of(several, 6)
    page = html.render(build_view(suite), {})
    opened = re.findall(r'<details class="prompt" open>.*?<div id="prompt-(\d+)">', page, re.DOTALL)
    assert opened == [str(overview(suite)[0].prompt_index + 1)]
    varied, quiet = page.split("2 quiet prompts with one answer each")
    assert [f'id="prompt-{number}"' in quiet for number in (3, 6)] == [True, True]
    assert 'id="prompt-3"' not in varied
    assert '<details class="more-prompts"><summary>' in varied


def test_the_table_of_prompts_comes_first(several: Analysis) -> None:
    page = html.render(build_view(suite_of(several, 6)), {})
    first_row = page.index('<table class="prompt-table">')
    assert page.index('class="cards"') < first_row < page.index('<details class="prompt"')
    for heading in ("distinct,<br>stock", "first<br>divergence", "flips", "two<br>agree"):
        assert heading in page
