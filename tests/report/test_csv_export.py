"""The tables read back as they were written, and no cell is a formula."""

from __future__ import annotations

import csv
from io import StringIO

import pytest

from detcheck.analysis.results import Analysis
from detcheck.report import csv_export
from detcheck.report.csv_export import csv_files

from . import hostile


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text)))


def test_one_row_a_condition(story: Analysis) -> None:
    table = rows(csv_files(story)["conditions.csv"])
    assert [row["condition"] for row in table][:2] == ["p0/stock/b1", "p0/stock/b4"]
    assert len(table) == len(story.run.conditions)
    assert sum(int(row["completions"]) for row in table) == 96
    assert {row["relative_cost"] for row in table if row["kernels"] == "stock"} == {""}


def test_one_row_a_variant(eighty: Analysis) -> None:
    table = rows(csv_files(eighty)["variants.csv"])
    stock = [row for row in table if row["kernels"] == "stock"]
    assert len(stock) == eighty.groups[0].distinct
    assert sum(int(row["count"]) for row in stock) == 1000
    assert stock[0]["text"] == eighty.groups[0].variants[0].variant.text


@pytest.mark.parametrize("start", hostile.STARTS_AS_FORMULA)
def test_no_cell_is_a_formula(start: str) -> None:
    shown = csv_export.cell(start + "x")
    assert shown.startswith("'") or not shown.lstrip(" ").startswith(csv_export.FORMULA_STARTS)
    assert csv_export.cell("x" + start).startswith("x")


def test_numbers_are_left_alone() -> None:
    assert [csv_export.cell(value) for value in (-1, -0.5, None, True)] == [-1, -0.5, None, True]


def test_one_row_a_branching(story: Analysis) -> None:
    table = rows(csv_files(story)["branchings.csv"])
    assert len(table) == sum(sum(group.flips.values()) for group in story.groups)
    assert {row["prompt"] for row in table} == {story.groups[0].prompt}


def test_hostile_answers_keep_the_table_whole(attacked: Analysis) -> None:
    text = csv_files(attacked)["variants.csv"]
    text.encode("utf-8")
    table = rows(text)
    assert len(table) == sum(group.distinct for group in attacked.groups)
    assert all(None not in row and None not in row.values() for row in table)
    assert all(len(row["text"]) < 32_767 for row in table)
    assert "\x00" not in text
