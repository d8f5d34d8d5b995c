"""The table fits a terminal and reads no prompt as markup."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from detcheck.analysis.results import Analysis
from detcheck.report.tables import summary_table


def shown(analysis: Analysis, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(summary_table(analysis))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["story", "several", "eighty", "silent", "texts", "attacked"])
def test_eighty_columns_are_enough(name: str, request: pytest.FixtureRequest) -> None:
    analysis = request.getfixturevalue(name)
    text = shown(analysis)
    assert max(map(len, text.splitlines())) <= 80
    body = text.replace(analysis.groups[0].prompt[:10], "")
    for heading in ("kernels", "distinct", "tokens/s", "cost"):
        assert heading in body
    assert f" {analysis.groups[0].distinct} " in body


def test_prompts_are_not_markup(several: Analysis) -> None:
    assert "“a [bold]prompt[/bol" in shown(several)


def test_missing_completions_are_said(story: Analysis) -> None:
    import dataclasses

    groups = (dataclasses.replace(story.groups[0], completions=40), *story.groups[1:])
    assert "40 of 48" in shown(dataclasses.replace(story, groups=groups)).replace("\n", " ")
