"""A baseline passes what repeats it, fails what does not, and is refused if it shows nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from sweeps import few

from detcheck.analysis.evidence import FAIL, INCONCLUSIVE
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import UsageError
from detcheck.evidence import ModelIdentity
from detcheck.experiment import NO_FILTERS
from detcheck.gate import PASS, GateOptions, baseline_of, judge, read_baseline
from detcheck.gate.accept import accept
from detcheck.gate.baseline import PREVIEW, write_baseline
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

from .runs import ENVIRONMENT, SeededScript, analysed

KERNELS = (BATCH_INVARIANT,)
OTHER = ScriptedEngine([Planted(5, 3, min_batch_size=1, kernels=BATCH_INVARIANT)])
"""Answers with another word at token 5, whatever the batch size."""


@pytest.fixture(params=["run", "file"])
def held(request, tmp_path):
    """Returns a function: a run and an earlier one -> the verdict, by run or by file."""

    def held(analysis, earlier, kernels=KERNELS):
        baseline = baseline_of(earlier, kernels)
        if request.param == "file":
            write_baseline(accept(earlier, kernels).baseline, tmp_path / "baseline.json")
            baseline = read_baseline(tmp_path / "baseline.json")
        options = GateOptions(kernels=kernels, baseline=Path("given"))
        return judge(analysis, options, baseline=baseline)

    return held


def test_the_same_answer_passes(tmp_path, good, held):
    verdict = held(analysed(tmp_path / "new"), good)
    assert verdict.value == PASS
    assert "Every answer is one that the baseline accepts." in verdict.reasons
    assert verdict.judged.baseline == "good"


def test_a_new_answer_fails_and_shows_the_words(tmp_path, good, held):
    verdict = held(analysed(tmp_path / "new", OTHER), good)
    assert verdict.value == FAIL
    sentence = verdict.reasons[0]
    assert "1 answer (48 of 48 completions) that the baseline does not accept" in sentence
    assert "they diverge at token 5, after" in sentence
    assert '"lit' in sentence


def test_a_new_answer_of_one_batch_size_fails_though_the_reference_holds(tmp_path, good, held):
    engine = ScriptedEngine([Planted(5, 3, min_batch_size=8, kernels=BATCH_INVARIANT)])
    analysis = analysed(tmp_path / "new", engine)
    old, new = (a.group(0, BATCH_INVARIANT).reference for a in (good, analysis))
    assert old.variant.fingerprint == new.variant.fingerprint
    assert held(analysis, good).value == FAIL


def test_another_reference_among_accepted_answers_passes(tmp_path, held):
    old = analysed(tmp_path / "old", ScriptedEngine([Planted(5, 3, min_batch_size=4)]))
    new = analysed(tmp_path / "new", ScriptedEngine([Planted(5, 3, min_batch_size=1)]))
    assert held(new, old, (STOCK,)).value == PASS


def test_answers_that_did_not_come_back_are_noted(tmp_path, held):
    old = analysed(tmp_path / "old", ScriptedEngine([Planted(5, 3, min_batch_size=4)]))
    verdict = held(analysed(tmp_path / "new"), old, (STOCK,))
    assert verdict.value == PASS
    assert any("1 of its 2 did not come back" in reason for reason in verdict.reasons)


def test_another_environment_is_noted(tmp_path, good, held):
    environment = {**ENVIRONMENT, "packages": {"torch": "2.13.0", "transformers": "5.17.0"}}
    verdict = held(analysed(tmp_path / "new", environment=environment), good)
    assert verdict.value == PASS
    note = "The environment differs from the baseline's: torch 2.12.0 → 2.13.0."
    assert note in verdict.reasons


def test_the_order_of_prompts_does_not_matter(tmp_path, held):
    prompts = ("One?", "Two?")
    old = analysed(tmp_path / "old", prompts=prompts)
    new = analysed(tmp_path / "new", prompts=prompts[::-1])
    assert held(new, old).value == PASS


def test_an_added_prompt_is_listed_and_the_others_are_held(tmp_path, held):
    old = analysed(tmp_path / "old", prompts=("One?", "Two?"))
    verdict = held(analysed(tmp_path / "new", prompts=("Two?", "Three?")), old)
    assert verdict.value == PASS
    reasons = " ".join(verdict.reasons)
    assert '1 prompt ("Three?") is not in the baseline' in reasons
    assert '1 prompt ("One?") is in the baseline and not in the run' in reasons
    assert verdict.judged.held == 1
    changed = held(analysed(tmp_path / "other", OTHER, prompts=("Two?", "Three?")), old)
    assert changed.value == FAIL
    assert [judged.value for judged in changed.groups] == [FAIL, PASS]


@few(
    ("change", "words"),
    [
        ({"model": "other"}, "something else: its model is"),
        ({"max_new_tokens": 11}, "something else: its token limit is 11, the run's is 12"),
        ({"temperature": 0.5}, "something else: its temperature"),
        ({"chat_template": False}, "something else: its chat template is off"),
        ({"prompts": ("Other?",)}, "none of the run's prompts"),
        ({"kernels": (STOCK,)}, "no batch-invariant kernels"),
    ],
    every=4,
)
def test_a_baseline_of_another_question_is_refused(tmp_path, held, change, words):
    old = analysed(tmp_path / "old", **change)
    new = analysed(tmp_path / "new")
    with pytest.raises(UsageError, match=words):
        held(new, old)


@few("filters", [{"top_k": 5}, {"top_p": 0.5, "min_p": 0.1}])
def test_a_baseline_of_another_sampling_is_refused(tmp_path, held, filters):
    sampled = {"temperature": 0.8, "seeds": (0,)}
    old = analysed(tmp_path / "old", **sampled, **filters)
    assert held(analysed(tmp_path / "same", **sampled, **filters), old).value == PASS
    name, value = next(iter(filters.items()))
    with pytest.raises(UsageError, match=f"its {name} is {value}, the run's is {NO_FILTERS[name]}"):
        held(analysed(tmp_path / "new", **sampled), old)


def test_a_baseline_of_another_number_type_is_refused(tmp_path, held):
    """By the type that was loaded; it is compared only if both runs know it."""
    half, single = (ModelIdentity(dtype=dtype) for dtype in ("bfloat16", "float32"))
    old = analysed(tmp_path / "old", identity=half)
    assert held(analysed(tmp_path / "same", identity=half), old).value == PASS
    assert held(analysed(tmp_path / "unknown"), old).value == PASS
    with pytest.raises(UsageError, match='its dtype is "bfloat16", the run\'s is "float32"'):
        held(analysed(tmp_path / "new", identity=single), old)
    with pytest.raises(UsageError, match="its dtype is"):
        held(analysed(tmp_path / "asked", dtype="float32"), old)


@few(
    ("ours", "words"),
    [
        ({"weights_digest": "sha256:b"}, "its model's digest of weights is"),
        ({"revision": "def"}, "its model's revision is"),
        ({"revision": "abc"}, None),
        ({}, None),
    ],
    every=4,
)
def test_a_baseline_of_other_weights_is_refused(tmp_path, held, ours, words):
    identity = {"revision": "abc", "weights_digest": "sha256:a"}
    old = analysed(tmp_path / "old", model="org/m", identity=ModelIdentity(**identity))
    new = analysed(tmp_path / "new", model="org/m", identity=ModelIdentity(**ours))
    if words is None:
        assert held(new, old).value == PASS
    else:
        with pytest.raises(UsageError, match=words):
            held(new, old)


def test_the_same_weights_in_another_folder_are_the_same_model(tmp_path, held):
    identity = ModelIdentity(weights_digest="sha256:a")
    old = analysed(tmp_path / "old", model="/a/m", identity=identity)
    assert held(analysed(tmp_path / "new", model="/b/m", identity=identity), old).value == PASS


def test_a_prompt_of_other_token_ids_was_asked_something_else(tmp_path, held):
    yesterday, today = (ModelIdentity(prompt_digests=(f"sha256:{day}",)) for day in "12")
    old = analysed(tmp_path / "old", identity=yesterday)
    verdict = held(analysed(tmp_path / "new", OTHER, identity=today), old)
    assert verdict.value == INCONCLUSIVE
    assert "asked something else than for the baseline" in verdict.reasons[0]
    assert held(analysed(tmp_path / "same", OTHER, identity=yesterday), old).value == FAIL


def test_a_baseline_sampled_with_another_seed_is_refused(tmp_path, held):
    old = analysed(tmp_path / "old", temperature=0.5, seeds=(1,))
    new = analysed(tmp_path / "new", temperature=0.5, seeds=(2,))
    with pytest.raises(UsageError, match="none of the run's prompts with its seeds"):
        held(new, old)


def test_a_seed_changes_nothing_at_temperature_zero(tmp_path, held):
    old = analysed(tmp_path / "old", seeds=(1,))
    assert held(analysed(tmp_path / "new", seeds=(2,)), old).value == PASS


def test_each_seed_is_held_by_itself(tmp_path, held):
    old = analysed(tmp_path / "old", SeededScript(), temperature=0.8, seeds=(0, 1, 2))
    same = analysed(tmp_path / "same", SeededScript(), temperature=0.8, seeds=(2, 1, 3))
    verdict = held(same, old)
    assert verdict.value == PASS
    reasons = " ".join(verdict.reasons)
    assert "Every answer to seed 2 is one that the baseline accepts." in reasons
    assert 'blue?" seed 3) is not in the baseline' in reasons
    assert 'blue?" seed 0) is in the baseline and not in the run' in reasons
    swapped = analysed(tmp_path / "new", SeededScript(shift=1), temperature=0.8, seeds=(0, 1))
    assert "1 answer to seed 0 " in held(swapped, old).reasons[0]


@few(
    "fault",
    [
        {"stop_after": 4},
        {"prove": False},
        {"script": ScriptedEngine(fail_rate=0.3)},
        {"script": ScriptedEngine(observed_share=0.5)},
        {"script": ScriptedEngine(missing=("mm",))},
        {"engine": "scripted"},
    ],
    every=4,
)
def test_a_baseline_without_evidence_is_refused(tmp_path, held, fault):
    old = analysed(tmp_path / "old", **fault)
    with pytest.raises(UsageError, match="The baseline is no evidence"):
        held(analysed(tmp_path / "new"), old)
    with pytest.raises(UsageError, match="The run is no evidence of answers to accept"):
        accept(old, (BATCH_INVARIANT,))


def test_few_completions_are_enough_for_a_baseline(tmp_path, held):
    old = analysed(tmp_path / "old", completions=8, batch_sizes=(4,), alive=False)
    assert held(analysed(tmp_path / "new"), old).value == PASS


def test_a_run_held_against_itself_is_refused(good, held):
    with pytest.raises(UsageError, match="of the run itself"):
        held(good, good)


def test_answers_without_token_ids_are_held_by_their_text(tmp_path, good, held):
    def text_only(completion):
        return dataclasses.replace(completion, token_ids=None)

    new = analysed(tmp_path / "new", change=text_only)
    assert held(new, good).value == PASS
    assert held(analysed(tmp_path / "other", OTHER, change=text_only), good).value == FAIL


def long_answer(completion, end=""):
    return dataclasses.replace(
        completion, text="x" * (PREVIEW + 10) + end, token_ids=None, token_ends=None
    )


def test_a_difference_after_the_preview_fails_and_says_so(tmp_path):
    old = analysed(tmp_path / "old", change=long_answer)
    new = analysed(tmp_path / "new", change=lambda answer: long_answer(answer, "y"))
    baseline = accept(old, KERNELS).baseline
    verdict = judge(new, GateOptions(baseline=Path("given")), baseline=baseline)
    assert verdict.value == FAIL
    assert "they agree in the first 2,000 characters" in verdict.reasons[0]


# Accepting answers.
