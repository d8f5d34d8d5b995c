"""The table fits a terminal and reads no prompt as markup."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from detcheck.analysis.results import Analysis
from detcheck.report.overview import overview
from detcheck.report.tables import MAX_PROMPTS, summary_table

from .suite import suite_of


def shown(analysis: Analysis, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(summary_table(analysis))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "name", ["story", "several", "eighty", "silent", "texts", "seeded", "attacked"]
)
def test_eighty_columns_are_enough(name: str, request: pytest.FixtureRequest) -> None:
    analysis = request.getfixturevalue(name)
    text = shown(analysis)
    assert max(map(len, text.splitlines())) <= 80
    body = text.replace(analysis.groups[0].prompt[:10], "")
    for heading in ("kernels", "distinct", "tokens/s", "cost"):
        assert heading in body
    assert f" {analysis.groups[0].distinct} " in body


@pytest.mark.parametrize("name", ["story", "several", "eighty", "silent", "seeded"])
def test_a_narrow_terminal_cuts_no_word(name: str, request: pytest.FixtureRequest) -> None:
    text = shown(request.getfixturevalue(name), width=40)
    assert "tokens/s" not in text
    for heading in ("kernels", "back", "distinct"):
        assert heading in text
    headings = next(line for line in text.splitlines() if "kernels" in line)
    assert "…" not in headings


def test_prompts_are_not_markup(several: Analysis) -> None:
    assert "“a [bold]prompt[/bol" in shown(several)


def test_missing_completions_are_reported(story: Analysis) -> None:
    import dataclasses

    groups = (dataclasses.replace(story.groups[0], completions=40), *story.groups[1:])
    assert "40 of 48" in shown(dataclasses.replace(story, groups=groups)).replace("\n", " ")


def test_the_unit_of_a_divergence_is_named(story: Analysis, texts: Analysis) -> None:
    assert f"token {story.groups[0].first_divergence}" in shown(story)
    assert f"char {texts.groups[0].first_divergence}" in shown(texts)


def test_the_cost_has_its_spread_below(story: Analysis) -> None:
    costs = [row.relative_cost for row in story.groups[1].by_batch_size]
    assert f"{min(costs):.2f}–{max(costs):.2f}" in shown(story)


def test_a_suite_shows_its_most_varied_prompts_and_counts_the_others(several: Analysis) -> None:
    text = shown(suite_of(several, MAX_PROMPTS + 5))
    assert "… 5 more prompts with fewer answers: see the report" in text
    numbers = [line.split()[0] for line in text.splitlines() if "“" in line]
    assert numbers == [str(row.prompt_index + 1) for row in overview(suite_of(several, 35))][:30]
