"""Power: a pass must have been able to fail."""

from __future__ import annotations

import dataclasses

import pytest

from detcheck.analysis.evidence import FAIL, INCONCLUSIVE
from detcheck.engines.scripted import ScriptedEngine
from detcheck.errors import UsageError
from detcheck.gate import PASS
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

from .runs import DIVERGING, SeededScript, rules


def test_too_few_comparisons_are_inconclusive(verdict_on):
    verdict = verdict_on(completions=24)
    assert verdict.value == INCONCLUSIVE
    assert rules(verdict, INCONCLUSIVE) == {"enough-comparisons"}
    assert "Only 16 comparisons under a batch larger than one" in verdict.reasons[0]
    assert "up to 17 % of answers could differ unseen" in verdict.reasons[0]
    assert "4 completions of larger batches only repeated a load exactly" in verdict.reasons[0]


def test_two_completions_of_one_token_are_inconclusive(verdict_on):
    verdict = verdict_on(
        completions=2, batch_sizes=(1, 2), max_new_tokens=1, run={"kernels": (STOCK,)}, kernels=None
    )
    assert verdict.value == INCONCLUSIVE
    assert "Only 1 comparison under a batch larger than one" in " ".join(verdict.reasons)


def test_more_comparisons_may_be_asked_for(verdict_on):
    assert verdict_on(min_comparisons=32).value == PASS
    verdict = verdict_on(min_comparisons=33)
    assert rules(verdict, INCONCLUSIVE) == {"enough-comparisons"}
    assert "a pass needs 33" in verdict.reasons[0]


def test_few_comparisons_that_differ_still_fail(verdict_on):
    verdict = verdict_on(DIVERGING, completions=12, kernels=STOCK)
    assert verdict.value == FAIL


def test_each_prompt_needs_its_own_comparisons(verdict_on):
    verdict = verdict_on(prompts=("One?", "Two?", "Three?"), completions=24)
    assert verdict.value == INCONCLUSIVE
    assert [judged.value for judged in verdict.groups] == [INCONCLUSIVE] * 3


@pytest.mark.parametrize("kernels", [BATCH_INVARIANT, STOCK, (STOCK, BATCH_INVARIANT)])
def test_a_control_of_which_nothing_moved_is_inconclusive(verdict_on, kernels):
    verdict = verdict_on(alive=False, kernels=kernels)
    assert verdict.value == INCONCLUSIVE
    assert rules(verdict, INCONCLUSIVE) == {"control-alive"}
    assert "not one bit of its log-probabilities moved" in verdict.reasons[0]


def test_a_control_without_log_probabilities_must_diverge(verdict_on):
    def silent(completion):
        return dataclasses.replace(completion, top_two=None)

    verdict = verdict_on(change=silent, level="tokens")
    assert rules(verdict, INCONCLUSIVE) == {"control-alive"}
    assert "one answer and no log-probabilities" in verdict.reasons[0]
    assert verdict_on(DIVERGING, change=silent, level="tokens").value == PASS


def test_a_control_that_gave_no_answer_is_inconclusive(verdict_on):
    class SilentStock(ScriptedEngine):
        def run_trial(self, trial, on_tokens=None):
            self.fail_rate = 1.1 if trial.condition.kernels == STOCK else 0.0
            return super().run_trial(trial, on_tokens)

    verdict = verdict_on(SilentStock())
    assert rules(verdict, INCONCLUSIVE) == {"control-alive"}
    assert "0 of 48 completions of stock came back" in verdict.reasons[0]


def test_a_dead_control_of_one_prompt_is_that_prompt_s(verdict_on):
    """Planted for the word that only the second prompt's answer has there."""

    def still(completion):
        same = dataclasses.replace(completion.top_two, logprobs=(-0.1,) * 12)
        return dataclasses.replace(completion, top_two=same)

    first = []

    def first_prompt_still(completion):
        first.append(completion.text) if not first else None
        return still(completion) if completion.text == first[0] else completion

    verdict = verdict_on(prompts=("One?", "Two?"), change=first_prompt_still)
    assert [judged.value for judged in verdict.groups] == [INCONCLUSIVE, PASS]


def test_a_control_that_moved_by_a_bit_alone_is_alive(verdict_on):
    verdict = verdict_on(ScriptedEngine())
    assert verdict.value == PASS
    assert any("the log-probabilities of 44 completions moved" in r for r in verdict.reasons)


def test_a_control_may_be_required(verdict_on):
    alone = {"kernels": (BATCH_INVARIANT,)}
    verdict = verdict_on(run=alone, require_control=True)
    assert rules(verdict, INCONCLUSIVE) == {"control-required"}
    assert verdict_on(run={}, require_control=True).value == PASS


def test_a_limit_that_cannot_be_exceeded_is_refused(verdict_on):
    with pytest.raises(UsageError, match=r"`max_distinct` is 39, which prompt 1 .* cannot exceed"):
        verdict_on(max_distinct=39, completions=40)
    with pytest.raises(UsageError, match="32 comparisons"):
        verdict_on(max_distinct=32)


def test_a_limit_above_one_needs_more_comparisons(verdict_on):
    verdict = verdict_on(max_distinct=14)
    assert rules(verdict, INCONCLUSIVE) == {"max-distinct"}
    assert "Up to 14 answers are allowed, so a pass needs 33 comparisons" in verdict.reasons[0]
    assert verdict_on(max_distinct=13).value == PASS


def test_an_interrupted_run_is_not_refused_for_its_limit(verdict_on):
    verdict = verdict_on(max_distinct=20, stop_after=3)
    assert verdict.value == INCONCLUSIVE


def test_planted_answers_are_inconclusive(verdict_on):
    verdict = verdict_on(run={"engine": "scripted"})
    assert verdict.value == INCONCLUSIVE
    assert rules(verdict, INCONCLUSIVE) == {"measured"}


def test_tokens_that_were_never_shown_are_named(verdict_on):
    def hidden(completion):
        return dataclasses.replace(completion, unseen_tokens=5)

    verdict = verdict_on(change=hidden)
    assert verdict.value == PASS
    assert any("counted 240 tokens that it never showed" in r for r in verdict.reasons)
    assert verdict.judged.unseen_tokens == 240
    required = verdict_on(change=hidden, require_whole_answer=True)
    assert rules(required, INCONCLUSIVE) == {"whole-answer"}
    assert verdict_on(require_whole_answer=True).value == PASS


def test_each_seed_has_one_answer(verdict_on):
    sampled = {"temperature": 0.8, "seeds": (0, 1, 2)}
    verdict = verdict_on(SeededScript(), run=sampled)
    assert verdict.value == PASS, verdict.reasons
    assert verdict.groups[0].group.distinct == 3


def test_a_second_answer_to_one_seed_fails_though_another_seed_gave_it(verdict_on):
    sampled = {"temperature": 0.8, "seeds": (0, 1, 2)}
    verdict = verdict_on(SeededScript(broken_at=8), run=sampled)
    assert verdict.value == FAIL
    assert "2 distinct answers to one of 3 seeds in 144 completions" in verdict.reasons[0]
