"""The gate and the report ask for the same evidence: neither is sure where the other is not."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from gate.runs import analysed

from detcheck.analysis.evidence import INCONCLUSIVE
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.gate import PASS, GateOptions, judge
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.report.card import BAD, GOOD, OPEN
from detcheck.report.cards import six_cards
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
    "batches unseen": {"script": ScriptedEngine(PLANTED, observed_share=0.5)},
    "completions missing": {"script": ScriptedEngine(PLANTED, fail_rate=0.3)},
    "nothing came back": {"script": ScriptedEngine(PLANTED, fail_rate=1.1)},
    "interrupted": {"stop_after": 5},
    "proof missing": {"prove": False},
    "override that never ran": {"script": Unproven(missing=("mm",))},
    "proof without a call": {"script": Unproven(overrides={"mm": 0})},
    "proof without a self-check": {"script": Unproven(self_check=None)},
    "self-check failed": {"script": Unproven(self_check="mm differs")},
    "batch size 1 only": {"batch_sizes": (1,)},
    "one load over and over": {"batch_sizes": (8,)},
    "too few comparisons": {"completions": 24},
    "a control of which nothing moved": {"script": ScriptedEngine(), "alive": False},
    "planted answers": {"engine": "scripted"},
}


@pytest.fixture
def analysis(tmp_path, request):
    return analysed(tmp_path / "run", **({"script": ScriptedEngine(PLANTED)} | request.param))


def verdict_on(analysis):
    return judge(analysis, GateOptions(kernels=BATCH_INVARIANT))


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


@pytest.mark.parametrize("analysis", [{"kernels": (BATCH_INVARIANT,)}], indirect=True)
def test_both_name_a_missing_control_beside_the_pass(analysis):
    verdict = verdict_on(analysis)
    assert verdict.value == PASS
    assert any("No control was measured" in reason for reason in verdict.reasons)
    *_, trust = six_cards(analysis)
    assert trust.mark == OPEN
    assert "stock control" in trust.detail
