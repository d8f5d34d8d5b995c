"""Answers that the seeds asked for, and answers that the system added within a seed."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from detcheck.analysis.results import Analysis
from detcheck.report import html, markdown
from detcheck.report.card import BAD, GOOD
from detcheck.report.cards import six_cards
from detcheck.report.figures import draw_all
from detcheck.report.seeds import seeds_view
from detcheck.report.tables import summary_table
from detcheck.report.view import build_view, headline


def test_the_card_tells_wanted_samples_from_unwanted_answers(seeded: Analysis) -> None:
    stock, invariant = seeded.groups
    how_many, _, _, cure, *_ = six_cards(seeded)
    assert how_many.detail == (
        f"You asked for 4 samples and got {stock.answers_from_seeds} from the seeds and "
        f"{stock.answers_from_system} from the system"
    )
    assert (how_many.answer, how_many.mark) == (
        f"up to {stock.distinct_within_seed} for each seed",
        BAD,
    )
    assert invariant.distinct == 4
    assert (cure.answer, cure.mark) == ("Yes: 1 for each seed", GOOD)
    assert six_cards(seeded)[2].detail.startswith("gaps of perturbed scores up to ")
    assert headline(seeded).startswith(
        f"Up to {stock.distinct_within_seed} different answers to one seed; 1 with"
    )


def test_rows_and_cells_are_those_of_the_analysis(seeded: Analysis) -> None:
    view = seeds_view(seeded.groups)
    assert view is not None
    assert view.batch_sizes == (1, 4, 8)
    for group in seeded.groups:
        rows = [row for row in view.rows if row.kernels == group.kernels]
        assert [row.seed for row in rows] == [0, 1, 2, 3]
        assert [row.distinct for row in rows] == [split.distinct for split in group.by_seed]
        for row, split in zip(rows, group.by_seed, strict=True):
            assert sum(cell.completions for cell in row.cells) == split.completions
            assert split.reference is not None
            assert split.reference.variant.text.endswith(row.sample)
    assert {row.distinct for row in view.rows if row.kernels != "stock"} == {1}
    assert len({row.sample for row in view.rows}) == 4


def test_an_answer_that_the_system_added_is_seen_in_its_cell(seeded: Analysis) -> None:
    view = seeds_view(seeded.groups)
    assert view is not None
    for row in view.rows:
        alone, *loaded = row.cells
        assert (alone.distinct, alone.differ) == (1, 0)
        added = any(cell.distinct > 1 or cell.differ for cell in loaded)
        assert added is (row.distinct > 1) is (row.kernels == "stock")


def test_one_seed_has_no_section(story: Analysis) -> None:
    assert seeds_view(story.groups) is None
    view = build_view(story)
    assert "Seeds and loads" not in html.render(view, {}) + markdown.render(view, {})


def test_every_format_shows_the_seeds(seeded: Analysis) -> None:
    view = build_view(seeded)
    drawings = draw_all(seeded)
    figure = next(one for one in drawings[0] if one.name == "seeds")
    assert "stock, You asked for 4 samples" in figure.alt
    for text in (html.render(view, drawings), markdown.render(view, {})):
        assert "Seeds and loads" in text
        assert "You asked for 4 samples and got 4 from the seeds and 0 from the system" in text
    console = Console(file=StringIO(), width=80)
    console.print(summary_table(seeded))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert "for one" in text
    assert f" {seeded.groups[0].distinct_within_seed} " in text


def test_branchings_name_their_seed(seeded: Analysis) -> None:
    group = build_view(seeded).prompts[0].groups[0]
    assert {place.seed for place in group.places} == {0, 1, 2, 3}
    found = sum(len(place.continuations) for place in group.places)
    assert found == len(seeded.groups[0].branchings)
    assert "<b>seed 3, token" in html.render(build_view(seeded), {})


@pytest.mark.parametrize("name", ["story", "seeded"])
def test_figures_of_answers_count_within_a_seed(name: str, request: pytest.FixtureRequest) -> None:
    analysis = request.getfixturevalue(name)
    figures = {one.name: one for one in draw_all(analysis)[0]}
    within = analysis.groups[1].distinct_within_seed
    assert within == 1
    assert f"batch-invariant, {within} at 1" in figures["distinct_by_batch_size"].alt
    assert f"batch-invariant, {within} answer at" in figures["cost_beside_benefit"].alt
