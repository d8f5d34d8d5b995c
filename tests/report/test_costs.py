"""A cost is shown with its spread."""

from __future__ import annotations

import dataclasses

import pytest

from detcheck.analysis.results import Analysis
from detcheck.report.cards import six_cards
from detcheck.report.costs import cost_range, group_cost, total_cost
from detcheck.report.markdown import render
from detcheck.report.view import build_view


def test_the_spread_is_that_of_the_batch_sizes(story: Analysis) -> None:
    stock, invariant = story.groups
    assert group_cost(stock) is None
    cost = group_cost(invariant)
    assert cost is not None
    rows = [row.relative_cost for row in invariant.by_batch_size]
    assert (cost.low, cost.high) == (min(rows), max(rows))
    assert cost.low < cost.mean == invariant.relative_cost < cost.high
    assert cost_range(cost) == f"{cost.mean:.2f}× ({cost.low:.2f}–{cost.high:.2f})"
    assert cost_range(None) == "–"


def test_over_prompts_it_is_that_of_the_prompts(story: Analysis) -> None:
    invariant = story.groups[1]
    prompts = [dataclasses.replace(invariant, relative_cost=cost) for cost in (0.75, 1.09, 1.18)]
    cost = total_cost(prompts)
    assert cost is not None
    assert (cost.low, cost.high, cost.over) == (0.75, 1.18, "over the prompts")
    assert cost.mean == pytest.approx((0.75 + 1.09 + 1.18) / 3)
    assert total_cost([]) is None


def test_every_place_that_shows_a_cost_shows_its_spread(story: Analysis) -> None:
    cost = group_cost(story.groups[1])
    assert cost is not None
    assert f"{cost.low:.2f}× to {cost.high:.2f}× over the batch sizes" in six_cards(story)[4].detail
    assert "over the batch sizes" in render(build_view(story), {})


def test_costs_that_are_alike_have_no_spread(story: Analysis) -> None:
    invariant = story.groups[1]
    row = dataclasses.replace(invariant.by_batch_size[0], relative_cost=1.171)
    group = dataclasses.replace(invariant, relative_cost=1.17, by_batch_size=(row,))
    assert cost_range(group_cost(group)) == "1.17×"
