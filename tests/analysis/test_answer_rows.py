"""The statistics as plain data, and what a run itself says of its answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded import record, small_experiment

from detcheck.analysis import Analysis, analyse
from detcheck.analysis.answer_rows import ANSWER_COLUMNS, answer_rows, answers_frame
from detcheck.analysis.answers import (
    Response,
    answer_stability,
    answered_item,
    before,
    stability_if_parsed,
    stability_of,
)
from detcheck.completion import Completion
from detcheck.errors import UsageError
from detcheck.kernels.settings import STOCK
from detcheck.parsers import answer_parser
from detcheck.prompts import PromptItem
from detcheck.traffic import Trial

from .answers import AnsweringEngine


def respond(trial: Trial, position: int) -> Completion:
    """One? is 6 alone and 7 in a batch of 4 with stock kernels; Two? is always 2."""
    if trial.requests[position].prompt == "Two?":
        return Completion("2", "stop")
    moved = trial.condition.kernels == STOCK and trial.condition.batch_size == 4
    return Completion("7" if moved else "6", "stop")


def analysis(path: Path, **fields: object) -> Analysis:
    items = (PromptItem(id="a", answer="6"), PromptItem(answer="the answer is 2"))
    asked = {"prompts": ("One?", "Two?"), "items": items, "answer": "number"}
    experiment = small_experiment(batch_sizes=(1, 4), completions=8, **asked | fields)
    return analyse(record(path / "run", AnsweringEngine(respond), experiment))


def test_a_run_names_its_parser_and_its_right_answers(tmp_path: Path) -> None:
    stock, invariant = answer_rows(answer_stability(analysis(tmp_path)))
    assert (stock["kernels"], stock["items"], stock["flips"]) == (STOCK, 2, 1)
    assert stock["accuracy"] == {"1": 1.0, "4": 0.5}
    assert (stock["best"], stock["worst"], stock["spread"]) == (1.0, 0.5, 0.5)
    assert stock["accuracy_std"] == pytest.approx(0.5 / 2**0.5)
    assert stock["standard_error"] == pytest.approx((0.75 * 0.25 / 2) ** 0.5)
    assert stock["flipped"] == [
        {
            "id": "a",
            "prompt": "One?",
            "expected": "6",
            "answers": [
                {"answer": "6", "completions": 4, "batch_sizes": [1], "example": "6"},
                {"answer": "7", "completions": 4, "batch_sizes": [4], "example": "7"},
            ],
        }
    ]
    assert (invariant["flips"], invariant["flipped"]) == (0, [])
    assert json.loads(json.dumps(stock))["sentence"].startswith("the load alone moves this score")


def test_the_table_of_answers_has_a_row_for_each(tmp_path: Path) -> None:
    frame = answers_frame(answer_stability(analysis(tmp_path)))
    assert tuple(frame.columns) == ANSWER_COLUMNS
    rows = frame[frame["kernels"] == STOCK].to_dict("records")
    assert [(r["item"], r["answer"], r["right"], r["completions"]) for r in rows] == [
        ("a", "6", True, 4),
        ("a", "7", False, 4),
        ("prompt 2", "2", True, 8),
    ]


def test_without_a_parser_nothing_is_parsed(tmp_path: Path) -> None:
    bare = analysis(tmp_path, answer=None)
    assert stability_if_parsed(bare) == ()
    with pytest.raises(UsageError, match="The run names no parser of answers"):
        answer_stability(bare)
    stock, _ = stability_if_parsed(bare, lambda text: "same")
    assert stock.flipped == ()
    assert stability_if_parsed(bare, "number")[0].flipped[0].name == "a"


@pytest.mark.parametrize(
    ("until", "answer"),
    [((), "12"), (("\n",), "6"), (("Q:",), "7"), (("Q:", "\n"), "6"), (("zzz",), "12")],
)
def test_an_answer_is_parsed_from_what_comes_before_the_first_end(until, answer: str) -> None:
    assert before(answer_parser("number"), until)("so 6\nno, 7 Q: 12") == answer


def test_a_parser_that_finds_nothing_says_so() -> None:
    items = [answered_item((0, "Why?", None), [Response(1, "a", None)], "6", div_index=None)]
    stability = stability_of(STOCK, items)
    assert stability.parsed_nothing
    assert stability.sentence == "the parser found no answer in any completion"


def test_a_score_that_does_not_move_hides_no_flip() -> None:
    """One item turns right as another turns wrong: the score stays at 50, both answers flip."""
    right = [Response(1, "1", "1"), Response(4, "2", "2")]
    wrong = [Response(1, "2", "2"), Response(4, "1", "1")]
    items = [
        answered_item((place, "?", None), responses, "1", div_index=0)
        for place, responses in enumerate((right, wrong))
    ]
    assert stability_of(STOCK, items).sentence == (
        "the load does not move this score, though the answer to 2 of 2 items changes"
    )
