"""The table of prompts: most varied first, every number the analysis' own, quiet prompts told."""

from __future__ import annotations

import dataclasses

import pytest

from detcheck.analysis.results import Analysis
from detcheck.report.overview import chance_equal, groups_by_prompt, overview, prompt_row
from detcheck.report.view import build_view

from .suite import suite_of


def test_the_most_varied_prompt_comes_first(several: Analysis) -> None:
    rows = overview(several)
    distinct = [row.most_distinct for row in rows]
    assert distinct == sorted(distinct, reverse=True)
    assert {row.prompt_index for row in rows} == {0, 1, 2}
    assert [prompt.row for prompt in build_view(several).prompts] == list(rows)


def test_a_row_holds_the_numbers_of_its_groups(several: Analysis) -> None:
    for row in overview(several):
        stock, invariant = groups_by_prompt(several)[row.prompt_index]
        assert [group.distinct for group in row.groups] == [stock.distinct, invariant.distinct]
        assert row.first_divergence == stock.first_divergence
        assert sum(row.flips.values()) == sum(stock.flips.values())
        assert row.agreement == chance_equal(stock)
        assert row.cost is not None
        assert row.cost.mean == invariant.relative_cost


def test_agreement_is_the_chance_that_two_completions_are_equal(story: Analysis) -> None:
    stock, invariant = story.groups
    assert chance_equal(invariant) == 1
    first, second, *_ = stock.variants
    halves = (dataclasses.replace(first, count=2), dataclasses.replace(second, count=2))
    group = dataclasses.replace(stock, completions=4, variants=halves)
    assert chance_equal(group) == pytest.approx(4 / 12)
    assert chance_equal(dataclasses.replace(group, completions=1)) is None


def test_only_a_prompt_with_one_answer_and_all_completions_is_quiet(
    silent: Analysis, story: Analysis
) -> None:
    assert overview(silent)[0].quiet
    assert not overview(story)[0].quiet
    missing = [dataclasses.replace(group, completions=47) for group in silent.groups]
    assert not prompt_row(missing).quiet


def test_a_prompt_without_completions_comes_before_all_others(several: Analysis) -> None:
    suite = suite_of(several, 6)
    groups = tuple(
        dataclasses.replace(group, completions=0, variants=(), divergences=(), flips={})
        if group.prompt_index == 5
        else group
        for group in suite.groups
    )
    assert overview(dataclasses.replace(suite, groups=groups))[0].prompt_index == 5
