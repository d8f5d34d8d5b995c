"""Limits on parsed answers: items that flip, the spread of the score, and parsers without a find.

Four items. Under stock kernels One? is right alone and wrong in a batch of 8; the others are always
right. So 1 of 4 flips, and the score falls from 100 to 75. Batch-invariant kernels change nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from analysis.answers import AnsweringEngine
from recorded import record, small_experiment

from detcheck.analysis import Analysis, analyse
from detcheck.analysis.answers import answer_stability
from detcheck.completion import Completion
from detcheck.errors import UsageError
from detcheck.evidence import KernelsProof
from detcheck.gate import GateOptions, Verdict, judge
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.prompts import PromptItem
from detcheck.traffic import Trial

from .runs import rules

PROMPTS = ("One?", "Two?", "Three?", "Four?")
ITEMS = tuple(PromptItem(id=prompt[:-1], answer="6") for prompt in PROMPTS)


class Proven(AnsweringEngine):
    def proof(self, kernels: str) -> KernelsProof:
        return KernelsProof(kernels, {"scripted": 1}, (), "passed")


def respond(trial: Trial, position: int) -> Completion:
    first = trial.requests[position].prompt == "One?"
    moved = first and trial.condition.kernels == STOCK and trial.condition.batch_size == 8
    return Completion("It is 7" if moved else "It is 6", "stop")


def analysis(path: Path, respond: Any = respond, **fields: Any) -> Analysis:
    asked = {"prompts": PROMPTS, "items": ITEMS, "answer": "number", "batch_sizes": (1, 8)}
    experiment = small_experiment(**asked | {"completions": 48} | fields)
    path.mkdir(exist_ok=True)
    return analyse(record(path / "run", Proven(respond), experiment))


def judged(found: Analysis, kernels: str = STOCK, **options: Any) -> Verdict:
    return judge(found, GateOptions(kernels=kernels, **options))


def sentences(verdict: Verdict, rule: str) -> list[str]:
    return [finding.sentence for finding in verdict.findings if finding.rule == rule]


def test_a_flipped_item_fails_with_both_answers(tmp_path: Path) -> None:
    verdict = judged(analysis(tmp_path), max_answer_flips=0)
    assert rules(verdict, "fail") == {"max-answer-flips"}
    assert sentences(verdict, "max-answer-flips") == [
        'The answer to One changes with the load ("7" 40 times, "6" 8 times): 1 of 4 items '
        "changes, at most 0 allowed."
    ]
    assert [group.value == "fail" for group in verdict.groups] == [True, False, False, False]


def test_the_twin_within_the_limit_does_not_fail(tmp_path: Path) -> None:
    found = analysis(tmp_path)
    within = judged(found, max_answer_flips=1)
    for verdict in (within, judged(found, BATCH_INVARIANT, level="answer", max_answer_flips=0)):
        assert rules(verdict, "fail") == set()
        assert "max-answer-flips" in rules(verdict, "note")


def test_the_spread_of_the_score_fails_beyond_its_limit(tmp_path: Path) -> None:
    found = analysis(tmp_path)
    verdict = judged(found, max_accuracy_spread=24.9)
    assert rules(verdict, "fail") == {"max-accuracy-spread"}
    [sentence] = sentences(verdict, "max-accuracy-spread")
    # The mean score is 87.5: sqrt(0.875 * 0.125 / 4) is 0.165.
    assert sentence == (
        "The score moves by 25 points with the load, from 75.00 at batch size 8 to 100.00 at 1 "
        "(standard error of the set 16.5), at most 24.9 allowed."
    )
    assert rules(judged(found, max_accuracy_spread=25), "fail") == set()
    [still] = sentences(
        judged(found, BATCH_INVARIANT, max_accuracy_spread=0), "max-accuracy-spread"
    )
    assert still.startswith("The score is 100.00 at every batch size")


def test_without_right_answers_a_spread_is_inconclusive(tmp_path: Path) -> None:
    verdict = judged(analysis(tmp_path, items=()), max_accuracy_spread=1)
    assert "max-accuracy-spread" in rules(verdict, "inconclusive")
    assert rules(verdict, "fail") == set()


def test_a_spread_over_one_batch_size_is_inconclusive(tmp_path: Path) -> None:
    verdict = judged(analysis(tmp_path, batch_sizes=(8,)), max_accuracy_spread=0)
    [sentence] = sentences(verdict, "max-accuracy-spread")
    assert "max-accuracy-spread" in rules(verdict, "inconclusive")
    assert sentence.startswith("The score is known at one batch size only")


def test_a_score_of_zero_at_every_batch_size_is_inconclusive(tmp_path: Path) -> None:
    """The right answers are words and the parser takes numbers: no load could move the score."""
    items = tuple(PromptItem(id=prompt[:-1], answer="six") for prompt in PROMPTS)
    verdict = judged(analysis(tmp_path, items=items), max_accuracy_spread=1)
    assert "max-accuracy-spread" in rules(verdict, "inconclusive")
    [sentence] = sentences(verdict, "max-accuracy-spread")
    assert sentence.startswith("No completion gives a right answer at any batch size")
    assert 'for One "six" is right, and the parser found "7" 40 times, "6" 8 times' in sentence
    [stock, _] = answer_stability(analysis(tmp_path / "twin", items=items))
    assert stock.sentence.startswith("no completion gives a right answer")


def test_a_parser_that_matches_nothing_is_inconclusive_with_three_examples(tmp_path: Path) -> None:
    def worded(trial: Trial, position: int) -> Completion:
        return Completion(f"about {trial.requests[position].prompt}", "stop")

    verdict = judged(analysis(tmp_path, worded), max_answer_flips=0)
    assert "answers-parsed" in rules(verdict, "inconclusive")
    assert sentences(verdict, "answers-parsed") == [
        "The parser number found no answer in any of 192 completions with stock kernels, such as "
        '"about One?", "about Two?", "about Three?": choose another parser.'
    ]


def test_some_completions_without_an_answer_are_noted(tmp_path: Path) -> None:
    def silent(trial: Trial, position: int) -> Completion:
        sure = trial.condition.batch_size == 1 or trial.requests[position].prompt == "One?"
        return Completion("6" if sure else "no idea", "stop")

    verdict = judged(analysis(tmp_path, silent), max_answer_flips=3)
    assert rules(verdict, "fail") == set()
    assert "found no answer in 120 of 192 completions" in sentences(verdict, "answers-parsed")[0]


@pytest.mark.parametrize("differ", [True, False])
def test_an_item_without_any_answer_is_judged_only_if_its_texts_are_equal(
    tmp_path: Path, differ: bool
) -> None:
    def cut_off(trial: Trial, position: int) -> Completion:
        if trial.requests[position].prompt != "Two?":
            return Completion("6", "stop")
        other = differ and trial.condition.batch_size == 8
        return Completion("Well, first of" if other else "First of all", "length")

    verdict = judged(analysis(tmp_path, cut_off), max_answer_flips=0)
    assert ("answers-parsed" in rules(verdict, "inconclusive")) == differ
    if differ:
        [sentence, _] = sentences(verdict, "answers-parsed")
        assert "no answer in any completion of Two, such as " in sentence


def test_a_limit_on_answers_needs_a_parser_and_a_sound_number(tmp_path: Path) -> None:
    unparsed = analysis(tmp_path, answer=None)
    with pytest.raises(UsageError, match="give a parser by `answer`"):
        judged(unparsed, max_answer_flips=0)
    with pytest.raises(UsageError, match="`max_answer_flips` must be at least 0, not -1"):
        GateOptions(max_answer_flips=-1)
    with pytest.raises(UsageError, match="`max_accuracy_spread` must be at least 0 and less"):
        GateOptions(max_accuracy_spread=100)


def test_a_limit_that_no_set_can_exceed_is_refused(tmp_path: Path) -> None:
    found = analysis(tmp_path)
    assert rules(judged(found, max_answer_flips=3), "fail") == set()
    with pytest.raises(UsageError, match="is 4, which 4 prompts cannot exceed: lower it"):
        judged(found, max_answer_flips=4)


def test_an_answer_ends_where_its_item_says(tmp_path: Path) -> None:
    """After the line break the model writes on, with another number under each load."""

    def chatty(trial: Trial, position: int) -> Completion:
        return Completion(f"6\nNext: {trial.condition.batch_size}", "stop")

    items = tuple(PromptItem(answer="6", until=("\n",)) for _ in PROMPTS)
    assert (
        rules(judged(analysis(tmp_path, chatty, items=items), max_answer_flips=0), "fail") == set()
    )
    without = analysis(tmp_path / "twin", chatty)
    assert rules(judged(without, max_answer_flips=0), "fail") == {"max-answer-flips"}
