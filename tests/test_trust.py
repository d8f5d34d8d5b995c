"""The gate and the report ask for the same evidence: neither is sure where the other is not."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from gate.runs import analysed

from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.gate.policy import rules_for
from detcheck.gate.verdict import INCONCLUSIVE, PASS, judge
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.report.cards import BAD, GOOD, OPEN, six_cards
from detcheck.report.view import headline

PLANTED = (Planted(5, 3, min_batch_size=4, rate=0.5),)


class Unproven(ScriptedEngine):
    """Proves its kernels, but for the fields that are given."""

    def __init__(self, **fault):
        super().__init__(PLANTED)
        self.fault = fault

    def proof(self, kernels):
        proof = super().proof(kernels)
        return proof if kernels == STOCK else msgspec.structs.replace(proof, **self.fault)


SOUND = {
    "every batch seen": {},
    "one size among other requests": {"batch_sizes": (8,), "traffic": "mixed"},
}
LACKING = {
    "batches unseen": {"engine": ScriptedEngine(PLANTED, observed_share=0.5)},
    "completions missing": {"engine": ScriptedEngine(PLANTED, fail_rate=0.3)},
    "nothing came back": {"engine": ScriptedEngine(PLANTED, fail_rate=1.1)},
    "interrupted": {"stop_after": 5},
    "proof missing": {"prove": False},
    "override that never ran": {"engine": Unproven(missing=("mm",))},
    "proof without a call": {"engine": Unproven(overrides={"mm": 0})},
    "proof without a self-check": {"engine": Unproven(self_check=None)},
    "self-check failed": {"engine": Unproven(self_check="mm differs")},
    "batch size 1 only": {"batch_sizes": (1,)},
    "one load over and over": {"batch_sizes": (8,)},
}


@pytest.fixture
def analysis(tmp_path, request):
    options = {"engine": ScriptedEngine(PLANTED)} | request.param
    return analysed(tmp_path / "run", options.pop("engine"), **options)


def verdict_on(analysis):
    return judge(analysis, (BATCH_INVARIANT,), rules_for(1))


@pytest.mark.parametrize("analysis", SOUND.values(), ids=SOUND, indirect=True)
def test_both_are_sure_of_a_sound_run(analysis):
    assert verdict_on(analysis).value == PASS
    *_, trust = six_cards(analysis)
    assert trust.mark == GOOD


@pytest.mark.parametrize("analysis", LACKING.values(), ids=LACKING, indirect=True)
def test_neither_is_sure_without_evidence(analysis):
    assert verdict_on(analysis).value == INCONCLUSIVE
    *answers, trust = six_cards(analysis)
    assert trust.mark == BAD
    assert GOOD not in {answer.mark for answer in answers}
    assert "whatever the load" not in headline(analysis)


@pytest.mark.parametrize("analysis", [{}], indirect=True)
def test_neither_is_sure_of_a_run_cut_off_before_its_summary(analysis):
    run = dataclasses.replace(analysis.run, finished=None)
    cut_off = dataclasses.replace(analysis, run=run)
    assert verdict_on(cut_off).value == INCONCLUSIVE
    assert six_cards(cut_off)[5].mark == BAD


@pytest.mark.parametrize(
    ("analysis", "words"),
    [
        ({"engine": ScriptedEngine()}, "control did not diverge"),
        ({"kernels": (BATCH_INVARIANT,)}, "stock control"),
    ],
    indirect=["analysis"],
)
def test_both_name_a_control_that_shows_nothing_beside_the_pass(analysis, words):
    verdict = verdict_on(analysis)
    assert verdict.value == PASS
    assert any(words in reason for reason in verdict.reasons)
    *_, trust = six_cards(analysis)
    assert trust.mark == OPEN
    assert words in trust.detail
