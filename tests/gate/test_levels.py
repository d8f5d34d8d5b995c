"""Levels: what is held equal, from the bits of log-probabilities to parsed answers."""

from __future__ import annotations

import dataclasses

import pytest

from detcheck.analysis.evidence import FAIL, INCONCLUSIVE
from detcheck.errors import UsageError
from detcheck.gate import PASS
from detcheck.kernels.settings import STOCK

from .runs import DIVERGING, analysed, rules


def one_bit(completion):
    """A completion of a batch of eight whose last log-probability differs in its last bit."""
    if completion.observed_batch.rows_max < 8:
        return completion
    *others, last = completion.top_two.logprobs
    other = dataclasses.replace(completion.top_two, logprobs=(*others, last * (1 + 2**-52)))
    return dataclasses.replace(completion, top_two=other)


def test_kernels_that_claim_invariance_are_judged_by_bits(verdict_on):
    verdict = verdict_on(change=one_bit)
    assert verdict.value == FAIL
    assert "the log-probabilities of 24 completions differ in some bit" in verdict.reasons[0]
    assert "(batch size 8)" in verdict.reasons[0]


@pytest.mark.parametrize("level", ["tokens", "text"])
def test_another_level_names_the_bits_and_passes(verdict_on, level):
    verdict = verdict_on(change=one_bit, level=level)
    assert verdict.value == PASS
    assert any("24 completions differ in some bit" in reason for reason in verdict.reasons)


def test_stock_is_judged_by_tokens(verdict_on):
    assert verdict_on(change=one_bit, kernels=STOCK).value == PASS
    assert verdict_on(change=one_bit, kernels=STOCK, level="bits").value == FAIL


def test_a_subset_of_the_kernels_is_judged_by_bits_too(verdict_on):
    subset = "batch-invariant:matmul"
    run = {"kernels": (STOCK, subset)}
    assert verdict_on(run=run, kernels=subset).value == PASS
    assert verdict_on(run=run, kernels=subset, change=one_bit).value == FAIL


def test_without_log_probabilities_nothing_is_judged_by_bits(verdict_on):
    def silent(completion):
        return dataclasses.replace(completion, top_two=None)

    verdict = verdict_on(DIVERGING, change=silent)
    assert rules(verdict, INCONCLUSIVE) == {"level"}
    assert "48 completions of 48 came without log-probabilities" in verdict.reasons[0]


def test_a_completion_without_log_probabilities_is_no_difference(verdict_on):
    def one_silent(completion):
        last = completion.observed_batch.rows_max == 8
        return dataclasses.replace(completion, top_two=None) if last else completion

    verdict = verdict_on(DIVERGING, change=one_silent)
    assert rules(verdict, FAIL) == set()
    assert rules(verdict, INCONCLUSIVE) == {"level"}
    assert "24 completions of 48 came without log-probabilities" in verdict.reasons[0]


def test_log_probabilities_of_some_tokens_alone_are_none(verdict_on):
    def partly(completion):
        gaps = (*completion.top_two.gaps[:-1], float("nan"))
        return dataclasses.replace(
            completion, top_two=dataclasses.replace(completion.top_two, gaps=gaps)
        )

    assert rules(verdict_on(change=partly), INCONCLUSIVE) == {"level"}
    assert verdict_on(change=partly, level="tokens").value == PASS


def test_equal_text_of_other_tokens_is_one_answer_by_text_alone(verdict_on):
    def other_tokens(completion):
        if completion.observed_batch.rows_max < 8:
            return completion
        return dataclasses.replace(completion, token_ids=(99, *completion.token_ids[1:]))

    assert verdict_on(change=other_tokens, level="tokens").value == FAIL
    verdict = verdict_on(change=other_tokens, level="text")
    assert verdict.value == PASS, verdict.reasons


def arithmetic(first: str, other: str):
    """Completions whose text is `first`, and `other` in batches of eight."""

    def change(completion):
        text = other if completion.observed_batch.rows_max == 8 else first
        return dataclasses.replace(completion, text=text, token_ids=None, token_ends=None)

    return change


def test_other_words_with_the_same_answer_pass_by_answer_alone(verdict_on):
    change = arithmetic("It is 42.", "The answer: 42")
    assert verdict_on(change=change, level="text").value == FAIL
    verdict = verdict_on(change=change, answer="number")
    assert verdict.value == PASS, verdict.reasons
    assert verdict.judged.levels == ("answer",)
    assert "There are 2 different answers by tokens." in verdict.reasons[0]


def test_another_parsed_answer_fails_and_is_named(verdict_on):
    verdict = verdict_on(change=arithmetic("It is 42.", "It is 41."), answer="number")
    assert verdict.value == FAIL
    assert '"42" 24 times, "41" 24 times' in verdict.reasons[0]


def test_answers_are_not_judged_without_a_parser(verdict_on):
    with pytest.raises(UsageError, match="give a parser by `answer`"):
        verdict_on(level="answer")
    assert verdict_on(level="answer", answer="exact").value == PASS


def test_a_parser_that_finds_nothing_is_inconclusive_and_shows_why(verdict_on):
    verdict = verdict_on(change=arithmetic("I am not sure.", "Who knows?"), answer="number")
    assert verdict.value == INCONCLUSIVE
    assert rules(verdict, INCONCLUSIVE) == {"level"}
    assert verdict.reasons[0] == (
        "The parser found no answer in 48 completions of 48, such as "
        '"I am not sure.", "Who knows?".'
    )


def test_a_baseline_does_not_lower_the_level(verdict_on, tmp_path):
    """The accepted words with other bits under load are no answer of invariant kernels."""
    baseline = tmp_path / "accepted"
    analysed(baseline)
    assert verdict_on(baseline=baseline).value == PASS
    assert verdict_on(baseline=baseline, change=one_bit, level="tokens").value == PASS
    verdict = verdict_on(baseline=baseline, change=one_bit)
    assert rules(verdict, FAIL) == {"max-distinct"}
    assert "the log-probabilities of 24 completions differ in some bit" in verdict.reasons[0]
