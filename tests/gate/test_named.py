"""The model that a gate was told to expect, and the age of a run."""

from __future__ import annotations

from datetime import UTC, datetime

from detcheck.analysis.evidence import INCONCLUSIVE
from detcheck.gate import PASS, GateOptions, judge

from .runs import analysed, rules


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
