"""Figures are well-formed SVG with the right numbers, whatever the words in them."""

from __future__ import annotations

import re
import warnings
from functools import partial
from xml.etree import ElementTree

import pytest
from sweeps import few

from detcheck.analysis.results import Analysis
from detcheck.report import figure_style, figures, html
from detcheck.report.costs import cost_range, group_cost
from detcheck.report.figure_style import DARK, Drawing
from detcheck.report.view import build_view

from . import sample

RUNS = [
    "story",
    "eighty",
    "silent",
    "texts",
    "several",
    "seeded",
    "attacked",
    "prefixes",
    "ablation",
]
SVG = "{http://www.w3.org/2000/svg}"


def drawn(analysis: Analysis) -> list[Drawing]:
    return [drawing for some in sample.drawn(analysis).values() for drawing in some]


def words_of(drawing: Drawing) -> list[str]:
    return [text.text or "" for text in parse(drawing).iter(f"{SVG}text")]


def parse(drawing: Drawing) -> ElementTree.Element:
    return ElementTree.fromstring(drawing.standalone().encode("utf-8"))


def figure(analysis: Analysis, name: str) -> Drawing:
    return next(drawing for drawing in drawn(analysis) if drawing.name == name)


@few("name", RUNS, every=4)
def test_every_figure_is_well_formed_and_holds_no_script(
    name: str, request: pytest.FixtureRequest
) -> None:
    drawings = drawn(request.getfixturevalue(name))
    assert drawings
    for drawing in drawings:
        tags = {element.tag.removeprefix(SVG) for element in parse(drawing).iter()}
        assert tags <= {"svg", "style", "rect", "defs", "clipPath", "g", "path", "text", "use"}
        assert drawing.alt


@few("name", RUNS, every=8)
def test_every_colour_has_a_dark_counterpart(name: str, request: pytest.FixtureRequest) -> None:
    for drawing in drawn(request.getfixturevalue(name)):
        used = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawing.body))
        assert used <= {*DARK, "none"}, drawing.name


def test_ids_are_unique_over_a_whole_page(several: Analysis) -> None:
    page = "".join(drawing.body for drawing in drawn(several))
    ids = re.findall(r' id="(\S+)"', page)
    assert len(ids) == len(set(ids))


def test_names_are_short_with_a_single_prompt(several: Analysis, story: Analysis) -> None:
    names = {drawing.name for drawing in drawn(story)}
    assert {"variants", "divergences", "distinct_by_batch_size", "cost_beside_benefit"} <= names
    assert {"prefix_tree", "agreement"} <= names
    names = {drawing.name for drawing in drawn(several)}
    assert {"prompt1_prefix_tree", "prompt2_prefix_tree", "prompt3_prefix_tree"} <= names
    assert "prompt3_divergences" not in names, "nothing diverged on the third prompt"


def test_the_tree_shows_the_words_and_their_counts(story: Analysis) -> None:
    texts = words_of(figure(story, "prefix_tree"))
    branches = {child.text.strip(): child.count for child in story.groups[0].tree.children}
    for words, count in branches.items():
        assert str(count) in texts
        assert any(text.startswith(words.split(" ")[0]) for text in texts)
    assert "48 completions, 6 distinct answers" in " ".join(texts)


def test_the_tree_says_how_much_it_leaves_out(eighty: Analysis) -> None:
    texts = " ".join(words_of(figure(eighty, "prefix_tree")))
    assert re.search(r"\d+ more answers|· \d+ answers", texts)


def test_the_same_analysis_gives_the_same_bytes(story: Analysis) -> None:
    assert figures.draw_all(story) == sample.drawn(story)


def test_hostile_words_stay_text(attacked: Analysis) -> None:
    tree = figure(attacked, "prompt1_prefix_tree")
    assert any("<script>" in text for text in words_of(tree))
    assert "<script" not in tree.body


def test_mathematics_is_not_parsed(attacked: Analysis) -> None:
    with figure_style.style():
        canvas = figure_style.new_figure()
        canvas.text(0, 0, "$\\frac{1}{0$")
        body = figure_style.finish(canvas, "x", "x").body
    assert "$\\frac{1}{0$" in body


def test_many_kernels_settings_are_named_in_every_figure(ablation: Analysis) -> None:
    for name in ("variants", "distinct_by_batch_size", "cost_beside_benefit"):
        texts = " ".join(words_of(figure(ablation, name)))
        for words in (
            "stock",
            "fully-invariant",
            "only matmul",
            "only attention",
            "only norm+soft",
        ):
            assert words in texts, name
    assert "without a line never leave it" in figure(ablation, "divergences").caption


def test_bars_begin_at_zero_and_the_rarest_are_gathered(eighty: Analysis) -> None:
    drawing = figure(eighty, "variants")
    stock = eighty.groups[0]
    texts = words_of(drawing)
    shown = [variant for variant in stock.variants if str(variant.count) in texts]
    assert {"completions", "variant", "0"} <= set(texts)
    (gathered,) = [text for text in texts if text.endswith(" more")]
    hidden = stock.distinct - int(gathered.split()[0])
    assert len(shown) >= hidden > 5
    assert str(sum(variant.count for variant in stock.variants[hidden:])) in texts


def test_every_branching_is_a_dot(eighty: Analysis) -> None:
    body = figure(eighty, "divergences").body
    stock = eighty.groups[0]
    for kind, flips in stock.flips.items():
        colour = figure_style.FLIP_COLOURS[kind]
        paths = re.findall(r"<path [^>]*>", body, re.DOTALL)
        dots = [path for path in paths if f"fill: {colour}; fill-opacity: 0.8" in path]
        assert len(dots) == flips
    assert sum(stock.flips.values()) == len(stock.branchings) > 10


def test_the_cost_is_drawn_beside_the_answers_with_its_spread(story: Analysis) -> None:
    drawing = figure(story, "cost_beside_benefit")
    texts = words_of(drawing)
    cost = group_cost(story.groups[1])
    assert {"stock", "batch-invariant", "distinct answers", "time per token against stock"} <= set(
        texts
    )
    assert cost_range(cost) in texts
    assert str(story.groups[0].distinct) in texts


@few("name", ["divergences", "cost_beside_benefit", "agreement", "variants"])
def test_figures_say_how_to_read_them(story: Analysis, name: str) -> None:
    caption = figure(story, name).caption
    assert caption.endswith(".")
    assert html.render(build_view(story), sample.drawn(story)).count(caption[:60]) == 1


def test_deprecations_between_libraries_are_no_faults_of_ours() -> None:
    """matplotlib 3.10.7 calls old names of pyparsing 3.3, which warns: figures could not be drawn.

    The twin: the same warning about a line of ours is an error of the tests.
    """
    warn = partial(warnings.warn_explicit, "old name", DeprecationWarning, "file.py", 1)
    for module in ("matplotlib._fontconfig_pattern", "matplotlib._mathtext", "pyparsing.core"):
        warn(module=module)
    for module in ("detcheck.report.figures", "matplotlib_of_ours"):
        with pytest.raises(DeprecationWarning):
            warn(module=module)
