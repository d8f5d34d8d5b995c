"""Every rule is shown the fault that it is for, and a run without that fault."""

from __future__ import annotations

import dataclasses
import re

import msgspec
import pytest

from detcheck.analysis.evidence import FAIL, INCONCLUSIVE, NOTE
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.gate import PASS
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

from .runs import DIVERGING, rules


def test_one_answer_under_proven_kernels_passes_with_its_bound(verdict_on):
    verdict = verdict_on(DIVERGING)
    assert verdict.value == PASS
    assert verdict.exit_code == 0
    assert verdict.reasons[0] == (
        "0 of 32 comparisons differed: with 95 % confidence fewer than 8.9 % would."
    )
    assert "The control (stock) gave 2 distinct answers" in " ".join(verdict.reasons)


def test_an_interrupted_run_names_its_end_and_not_the_load_that_it_did_not_reach(verdict_on):
    verdict = verdict_on(completions=8, batch_sizes=(1, 4), stop_after=2)
    assert {"run-complete", "every-completion"} <= rules(verdict, INCONCLUSIVE)
    assert not {"load-varied", "batches-observed"} & rules(verdict, INCONCLUSIVE)
    assert not any("0 of 0 comparisons" in reason for reason in verdict.reasons)
    assert "%" not in dict(verdict.judged.facts())["compared"]


def test_a_run_that_asked_for_one_load_names_it(verdict_on):
    """The twin."""
    verdict = verdict_on(completions=30, batch_sizes=(1,))
    assert any("(batch size 1 only)" in reason for reason in verdict.reasons)


def test_more_answers_than_allowed_fail_and_say_where(verdict_on):
    verdict = verdict_on(DIVERGING, kernels=STOCK)
    assert verdict.value == FAIL
    assert verdict.exit_code == 1
    assert rules(verdict, FAIL) == {"max-distinct"}
    assert verdict.reasons[0].startswith("2 distinct answers in 48 completions, at most 1 allowed")
    assert "position 5" in verdict.reasons[0]
    assert '"lit' in verdict.reasons[0]  # word 3 of the script, planted


def test_as_many_answers_as_allowed_pass(verdict_on):
    verdict = verdict_on(DIVERGING, kernels=STOCK, max_distinct=2)
    assert verdict.value == PASS
    assert "2 distinct answers in 48 completions" in verdict.reasons[0]


def test_a_missing_control_is_named_beside_the_pass(verdict_on):
    verdict = verdict_on(run={"kernels": (BATCH_INVARIANT,)})
    assert verdict.value == PASS
    assert any("No control was measured" in reason for reason in verdict.reasons)


def test_missing_completions_are_inconclusive(verdict_on):
    verdict = verdict_on(ScriptedEngine(fail_rate=0.3))
    assert verdict.value == INCONCLUSIVE
    assert verdict.exit_code == 3
    assert "every-completion" in rules(verdict, INCONCLUSIVE)
    assert re.match(r"\d+ of 48 completions came back \(\d+ requests failed\)", verdict.reasons[0])


def test_no_completion_at_all_is_inconclusive(verdict_on):
    verdict = verdict_on(ScriptedEngine(fail_rate=1.1))
    assert verdict.value == INCONCLUSIVE
    assert verdict.reasons[0].startswith("0 of 48 completions came back")


def test_batches_that_never_formed_are_inconclusive(verdict_on):
    verdict = verdict_on(ScriptedEngine(observed_share=0.5))
    assert verdict.value == INCONCLUSIVE
    assert rules(verdict, INCONCLUSIVE) == {"batches-observed"}


def test_batches_that_were_not_observed_are_inconclusive(verdict_on):
    verdict = verdict_on(
        change=lambda completion: dataclasses.replace(completion, observed_batch=None)
    )
    assert verdict.value == INCONCLUSIVE
    assert "batches-observed" in rules(verdict, INCONCLUSIVE)


def test_an_override_that_never_ran_is_inconclusive(verdict_on):
    verdict = verdict_on(ScriptedEngine(missing=("aten::addmm",)))
    assert verdict.value == INCONCLUSIVE
    assert rules(verdict, INCONCLUSIVE) == {"kernels-proven"}
    assert "aten::addmm" in verdict.reasons[0]


def test_a_run_without_proof_is_inconclusive(verdict_on):
    assert rules(verdict_on(prove=False), INCONCLUSIVE) == {"kernels-proven"}


def test_stock_kernels_need_no_proof(verdict_on):
    assert verdict_on(prove=False, kernels=STOCK).value == PASS


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"overrides": {"mm": 0}}, "no override served a call"),
        ({"overrides": {}}, "no override served a call"),
        ({"self_check": None}, "its self-check"),
        ({"self_check": "mm differs"}, "mm differs"),
    ],
)
def test_a_hollow_proof_is_no_proof(verdict_on, monkeypatch, fault, words):
    real = ScriptedEngine.proof

    def hollow(self, kernels):
        proof = real(self, kernels)
        return proof if kernels == STOCK else msgspec.structs.replace(proof, **fault)

    monkeypatch.setattr(ScriptedEngine, "proof", hollow)
    verdict = verdict_on()
    assert verdict.value == INCONCLUSIVE
    assert words in verdict.reasons[0]


def test_an_interrupted_run_is_inconclusive(verdict_on):
    # Five of six conditions: stock is all there, and still the run is not whole.
    verdict = verdict_on(stop_after=5, kernels=STOCK)
    assert verdict.value == INCONCLUSIVE
    assert rules(verdict, INCONCLUSIVE) == {"run-complete"}
    assert "1 of 6 conditions" in verdict.reasons[0]


def test_an_interrupted_run_that_diverged_already_fails(verdict_on):
    verdict = verdict_on(DIVERGING, stop_after=5, kernels=STOCK)
    assert verdict.value == FAIL
    assert rules(verdict, INCONCLUSIVE) == {"run-complete"}


def test_batches_of_one_cannot_fail_and_so_do_not_pass(verdict_on):
    verdict = verdict_on(batch_sizes=(1,), run={"kernels": (BATCH_INVARIANT,)})
    assert verdict.value == INCONCLUSIVE
    assert rules(verdict, INCONCLUSIVE) == {"load-varied"}
    assert "could not have failed" in verdict.reasons[0]


def test_one_load_over_and_over_does_not_pass(verdict_on):
    verdict = verdict_on(batch_sizes=(8,), run={"kernels": (BATCH_INVARIANT,)})
    assert rules(verdict, INCONCLUSIVE) == {"load-varied"}


def test_one_batch_size_among_other_requests_may_pass(verdict_on):
    alone = {"kernels": (BATCH_INVARIANT,), "batch_sizes": (8,), "traffic": "mixed"}
    assert verdict_on(run=alone).value == PASS


def test_one_batch_size_in_differing_batches_may_pass(verdict_on):
    rows = iter(range(1000))

    def varied(completion):
        rows_mean = 8 - next(rows) % 3
        observed = msgspec.structs.replace(completion.observed_batch, rows_mean=rows_mean)
        return dataclasses.replace(completion, observed_batch=observed)

    alone = {"kernels": (BATCH_INVARIANT,), "batch_sizes": (8,)}
    assert verdict_on(run=alone, change=varied).value == PASS


def test_one_bad_prompt_of_two_fails_the_run_and_is_named(verdict_on):
    prompts = ("Why is the sky blue?", "Why is the sea blue?")
    engine = ScriptedEngine([Planted(5, 3, kernels=BATCH_INVARIANT)])
    verdict = verdict_on(engine, kernels=(STOCK, BATCH_INVARIANT), prompts=prompts)
    by_group = {(v.group.prompt, v.group.kernels): v.value for v in verdict.groups}
    assert verdict.value == FAIL
    assert by_group[prompts[0], STOCK] == PASS
    assert by_group[prompts[0], BATCH_INVARIANT] == FAIL
    assert 'prompt 1 "Why is the sky blue?" [batch-invariant]: 2 distinct' in verdict.reasons[0]
    assert verdict.summary == "2 prompts under 2 kernels settings: 2 pass, 2 fail"


def test_findings_come_worst_first(verdict_on):
    verdict = verdict_on(ScriptedEngine([Planted(5, 3)], observed_share=0.5), kernels=STOCK)
    effects = [finding.effect for finding in verdict.findings]
    assert effects == sorted(effects, key=[FAIL, INCONCLUSIVE, NOTE].index)
    assert effects[0] == FAIL


def test_repeats_that_differ_are_named(verdict_on, monkeypatch):
    real = ScriptedEngine.run_trial

    def unsteady(self, trial, on_tokens=None):
        # As an engine whose answer is not decided by the load: a repeat is another draw.
        return real(self, dataclasses.replace(trial, index=trial.index + 1000), on_tokens)

    monkeypatch.setattr(ScriptedEngine, "run_trial", unsteady)
    engine = ScriptedEngine([Planted(5, 3, min_batch_size=4, rate=0.5)])
    verdict = verdict_on(engine, kernels=STOCK)
    assert any("Exact repeats of a load gave" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda answer: answer, "(no noise was measured to tell rounding from a bug)"),
        (
            lambda answer: dataclasses.replace(answer, top_two=None),
            "(no log-probabilities to tell why)",
        ),
    ],
)
def test_an_unknown_kind_says_what_was_missing(verdict_on, change, words):
    at_once = ScriptedEngine([Planted(0, 3, min_batch_size=4, gap=0.5)])
    verdict = verdict_on(at_once, kernels=STOCK, change=change)
    assert verdict.value == FAIL
    assert words in verdict.reasons[0]
