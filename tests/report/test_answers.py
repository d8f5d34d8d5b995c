"""Parsed answers in the terminal, the Markdown and HTML reports, and answers.csv."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from analysis.answers import AnsweringEngine
from recorded import record, small_experiment
from rich.console import Console

from detcheck.analysis import Analysis, analyse
from detcheck.completion import Completion
from detcheck.kernels.settings import STOCK
from detcheck.prompts import PromptItem
from detcheck.report.answers import answers_of
from detcheck.report.answers_table import answers_table
from detcheck.report.tables import summary_table
from detcheck.report.write import render_files
from detcheck.traffic import Trial

ITEMS = (PromptItem(id="<b>a", answer="6"), PromptItem(id="b", answer="2"))


def respond(trial: Trial, position: int) -> Completion:
    """One? is 6 alone and, with stock kernels, 7 or nothing in a batch of 4; Two? is always 2."""
    if trial.requests[position].prompt == "Two?":
        return Completion("2", "stop")
    moved = trial.condition.kernels == STOCK and trial.condition.batch_size == 4
    return Completion(("<i>7", "none")[position % 2] if moved else "6", "stop")


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    experiment = small_experiment(
        prompts=("One?", "Two?"), items=ITEMS, answer="number", batch_sizes=(1, 4), completions=8
    )
    path = tmp_path_factory.mktemp("answers") / "run"
    return analyse(record(path, AnsweringEngine(respond), experiment))


@pytest.fixture(scope="module")
def files(analysis: Analysis) -> dict[str, str]:
    return render_files(analysis, ("html", "md", "csv"))


def test_the_view_names_every_figure(analysis: Analysis) -> None:
    """Scores of stock: 100 alone, 50 in a batch of 4; mean 75, error sqrt(.75 * .25 / 2) = 30.6."""
    view = answers_of(analysis)
    assert view is not None
    row = view.rows[0]
    assert (row.flips, row.scores, row.moved) == ("1 of 2", "50.00 to 100.00", "±25")
    assert (row.standard_error, row.accuracy_std) == ("30.62", "35.36")
    assert (row.raw_agreement, row.parsed_agreement) == ("50.0\u00a0%", "50.0\u00a0%")
    assert row.unparsed == "2"
    [flipped] = view.flipped
    assert flipped.answers == (
        ('"6"', "4 times, at batch size 1"),
        ('"7"', "2 times, at batch size 4"),
        ("no answer", "2 times, at batch size 4"),
    )
    assert dict(view.sentences)[STOCK] == (
        "The load alone moves this score by ±25 points; a difference below that is noise. The "
        "standard error of 2 items is 30.6 points."
    )
    assert view.examples == ((STOCK, ("none",)),)


def test_the_terminal_shows_the_row_the_finding_and_the_flip(analysis: Analysis) -> None:
    view = answers_of(analysis)
    assert view is not None
    console = Console(width=80, record=True, no_color=True)
    with console.capture() as captured:
        console.print(answers_table(view))
    text = re.sub(r"\s+", " ", captured.get())
    assert "answers, parsed by number" in text
    assert "1 of 2 50.00 to 100.00 ±25 30.62" in text
    assert 'stock <b>a, right is 6: "6" 4 times, at batch size 1; "7" 2 times' in text
    assert "stock: no answer was found in “none”" in text


def test_without_a_parser_no_report_speaks_of_answers(analysis: Analysis, tmp_path: Path) -> None:
    experiment = small_experiment(prompts=("One?",), batch_sizes=(1, 4), completions=8)
    bare = analyse(record(tmp_path / "run", AnsweringEngine(respond), experiment))
    assert answers_of(bare) is None
    written = render_files(bare, ("html", "md", "csv"))
    assert "answers.csv" not in written
    assert "Does the answer change?" not in written["report.md"] + written["report.html"]
    named = render_files(bare, ("html", "md", "csv"), answer="number")
    assert "Does the answer change?" in named["report.md"]
    assert "answers.csv" in named


def test_markdown_and_html_show_the_flip_and_no_markup_of_the_model(files) -> None:
    for name in ("report.md", "report.html"):
        text = files[name]
        assert "Does the answer change?" in text
        assert "±25" in text
        section = re.split(r"\n## |</section>", text[text.index("Does the answer change?") :])[0]
        assert "<b>a" not in section
        assert "<i>7" not in section


def test_prompts_are_shown_with_their_ids(analysis: Analysis, files) -> None:
    """Few-shot prompts begin alike: their ids tell them apart."""
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        console.print(summary_table(analysis))
    assert "1  <b>a  “One?”" in captured.get()
    assert ">&lt;b&gt;a</bdi></small>" in files["report.html"]
    assert 'href="#answers"' in files["report.html"]


def test_the_csv_has_each_answer(files) -> None:
    lines = files["answers.csv"].splitlines()
    assert lines[0].startswith("kernels,item,prompt,expected,answer,right,completions")
    assert sum(line.startswith("stock,<b>a,") for line in lines) == 3
