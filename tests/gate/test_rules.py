"""Every rule is shown the fault that it is for, and a run without that fault."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime
from itertools import count

import msgspec
import pytest

from detcheck.analysis.evidence import FAIL, INCONCLUSIVE, NOTE
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import UsageError
from detcheck.gate import PASS, GateOptions, Verdict, judge
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

from .runs import SeededScript, analysed

DIVERGING = ScriptedEngine([Planted(5, 3, min_batch_size=4)])


@pytest.fixture
def verdict_on(tmp_path):
    """Returns a function: an engine, options of the gate and of the run -> the verdict."""

    numbers = count()

    def judged(engine=None, *, kernels=BATCH_INVARIANT, run=None, **options) -> Verdict:
        fields = set(GateOptions.__struct_fields__) - {"kernels"}
        asked = {name: options.pop(name) for name in fields & options.keys()}
        path = tmp_path / f"run{next(numbers)}"
        analysis = analysed(path, engine, **(run or {}), **options)
        return judge(analysis, GateOptions(kernels=kernels, **asked))

    return judged


def rules(verdict: Verdict, effect: str) -> set[str]:
    return {finding.rule for finding in verdict.findings if finding.effect == effect}


def test_one_answer_under_proven_kernels_passes_with_its_bound(verdict_on):
    verdict = verdict_on(DIVERGING)
    assert verdict.value == PASS
    assert verdict.exit_code == 0
    assert verdict.reasons[0] == (
        "0 of 32 comparisons differed: with 95 % confidence fewer than 8.9 % would."
    )
    assert "The control (stock) gave 2 distinct answers" in " ".join(verdict.reasons)


def test_an_interrupted_run_names_the_load_that_it_had(verdict_on):
    verdict = verdict_on(completions=8, batch_sizes=(1, 4), stop_after=2)
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


# Power: a pass must have been able to fail.


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
    assert "stock gave no answer" in verdict.reasons[0]


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


# Levels: bits, tokens, text.


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


# What was asked of which model, and when.


def test_another_model_than_the_named_one_is_inconclusive(verdict_on):
    verdict = verdict_on(model="Qwen/Qwen3-8B")
    assert rules(verdict, INCONCLUSIVE) == {"model"}
    assert verdict.reasons[0] == (
        'The run asked "SmolLM2-135M-Instruct (embedded)", not "Qwen/Qwen3-8B".'
    )


def test_the_named_model_passes(verdict_on):
    assert verdict_on(model="SmolLM2-135M-Instruct").value == PASS
    assert verdict_on(model="some/model", run={"model": "some/model"}).value == PASS


def test_a_run_older_than_allowed_is_inconclusive(tmp_path):
    analysis = analysed(tmp_path / "run", finished="2026-01-01T00:00:00Z")
    now = datetime(2026, 1, 1, 3, tzinfo=UTC)
    assert judge(analysis, GateOptions(max_age="3h"), now=now).value == PASS
    verdict = judge(analysis, GateOptions(max_age="2h30m"), now=now)
    assert rules(verdict, INCONCLUSIVE) == {"max-age"}
    assert verdict.reasons[0].startswith("The run is 3 hours old, and at most 2h30m is allowed")


def test_a_run_of_the_future_has_no_known_age(tmp_path):
    analysis = analysed(tmp_path / "run", finished="2026-01-01T00:00:00Z")
    now = datetime(2025, 12, 31, tzinfo=UTC)
    verdict = judge(analysis, GateOptions(max_age="2h"), now=now)
    assert rules(verdict, INCONCLUSIVE) == {"max-age"}
    assert "1 day in the future" in verdict.reasons[0]
