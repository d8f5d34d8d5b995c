"""A baseline passes what repeats it, fails what does not, and is refused where it shows nothing."""

from __future__ import annotations

import pytest

from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import UsageError
from detcheck.gate.baseline import hold_against
from detcheck.gate.policy import rules_for
from detcheck.gate.verdict import FAIL, PASS, judge
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK

from .runs import ENVIRONMENT, analysed

KERNELS = (BATCH_INVARIANT,)


@pytest.fixture
def baseline(tmp_path):
    return analysed(tmp_path / "baseline")


def judged(analysis, baseline, kernels=KERNELS):
    return judge(analysis, kernels, rules_for(None, hold_against(baseline, analysis, kernels)))


def test_the_same_answer_passes(tmp_path, baseline):
    verdict = judged(analysed(tmp_path / "new"), baseline)
    assert verdict.value == PASS
    assert "Every answer is one that the baseline gave." in verdict.reasons


def test_a_new_answer_fails_and_shows_the_words(tmp_path, baseline):
    engine = ScriptedEngine([Planted(5, 3, min_batch_size=1, kernels=BATCH_INVARIANT)])
    verdict = judged(analysed(tmp_path / "new", engine), baseline)
    assert verdict.value == FAIL
    sentence = verdict.reasons[0]
    assert "1 answer (24 of 24 completions) the baseline did not give" in sentence
    assert "they part at token 5, after" in sentence
    assert '"lit' in sentence


def test_a_new_answer_of_one_batch_size_fails_though_the_reference_holds(tmp_path, baseline):
    engine = ScriptedEngine([Planted(5, 3, min_batch_size=8, kernels=BATCH_INVARIANT)])
    analysis = analysed(tmp_path / "new", engine)
    old, new = (a.group(0, BATCH_INVARIANT).reference for a in (baseline, analysis))
    assert old.variant.fingerprint == new.variant.fingerprint
    assert judged(analysis, baseline).value == FAIL


def test_another_reference_among_known_answers_fails(tmp_path):
    stock = (STOCK,)
    old = analysed(tmp_path / "old", ScriptedEngine([Planted(5, 3, min_batch_size=4)]))
    new = analysed(tmp_path / "new", ScriptedEngine([Planted(5, 3, min_batch_size=1)]))
    verdict = judged(new, old, stock)
    assert verdict.value == FAIL
    assert "another one of the baseline's: they part at token 5" in verdict.reasons[0]


def test_answers_that_did_not_come_back_are_noted(tmp_path):
    old = analysed(tmp_path / "old", ScriptedEngine([Planted(5, 3, min_batch_size=4)]))
    verdict = judged(analysed(tmp_path / "new"), old, (STOCK,))
    assert verdict.value == PASS
    assert any("1 of the baseline's 2 did not come back" in reason for reason in verdict.reasons)


def test_another_environment_is_noted(tmp_path, baseline):
    environment = {**ENVIRONMENT, "packages": {"torch": "2.13.0", "transformers": "5.17.0"}}
    verdict = judged(analysed(tmp_path / "new", environment=environment), baseline)
    assert verdict.value == PASS
    note = "The environment differs from the baseline: torch 2.12.0 → 2.13.0."
    assert note in verdict.reasons


def test_the_order_of_prompts_does_not_matter(tmp_path):
    prompts = ("One?", "Two?")
    old = analysed(tmp_path / "old", prompts=prompts)
    new = analysed(tmp_path / "new", prompts=prompts[::-1])
    assert judged(new, old).value == PASS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "other"}, "another model"),
        ({"max_new_tokens": 11}, "another max new tokens"),
        ({"temperature": 0.5}, "another temperature"),
        ({"chat_template": False}, "another chat template"),
        ({"prompts": ("Other?",)}, "other prompts"),
        ({"prompts": ("Why is the sky blue?", "Other?")}, "other prompts"),
        ({"kernels": (STOCK,)}, "no batch-invariant kernels"),
    ],
)
def test_a_baseline_of_another_question_is_refused(tmp_path, change, words):
    old = analysed(tmp_path / "old", **change)
    new = analysed(tmp_path / "new")
    with pytest.raises(UsageError, match=words):
        hold_against(old, new, KERNELS)


def test_a_baseline_sampled_with_another_seed_is_refused(tmp_path):
    old = analysed(tmp_path / "old", temperature=0.5, seeds=(1,))
    new = analysed(tmp_path / "new", temperature=0.5, seeds=(2,))
    with pytest.raises(UsageError, match="seeds 1"):
        hold_against(old, new, KERNELS)


@pytest.mark.parametrize(
    "fault",
    [
        {"stop_after": 4},
        {"prove": False},
        {"engine": ScriptedEngine(fail_rate=0.3)},
        {"engine": ScriptedEngine(observed_share=0.5)},
        {"engine": ScriptedEngine(missing=("mm",))},
    ],
)
def test_a_baseline_without_evidence_is_refused(tmp_path, fault):
    engine = fault.pop("engine", None)
    old = analysed(tmp_path / "old", engine, **fault)
    with pytest.raises(UsageError, match="no evidence"):
        hold_against(old, analysed(tmp_path / "new"), KERNELS)


def test_a_run_held_against_itself_is_refused(baseline):
    with pytest.raises(UsageError, match="itself"):
        hold_against(baseline, baseline, KERNELS)
