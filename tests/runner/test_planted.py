"""What is planted comes out, and nothing else."""

from __future__ import annotations

import re
import threading
from collections import Counter
from pathlib import Path

import pytest
from asking import conditions_of
from recorded import small_experiment

from detcheck import Run, load, run
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.traffic import plan_trials

from .measured import EXPERIMENT, FIRST, LAST, Engine, assert_same, counts


def test_a_planted_divergence_is_in_the_summary_exactly(tmp_path: Path) -> None:
    experiment = small_experiment(completions=23, batch_sizes=(1, 4))
    engine = ScriptedEngine([Planted(5, 3, min_batch_size=4)])
    measured = run(experiment, out=tmp_path / "run", engine=engine)
    share = {c.batch_size: c.completions for c in conditions_of(experiment)}
    stock, invariant = measured.summary
    assert (stock["kernels"], invariant["kernels"]) == (STOCK, BATCH_INVARIANT)
    assert (stock["completions"], invariant["completions"]) == (23, 23)
    assert (stock["distinct"], invariant["distinct"]) == (2, 1)
    assert (stock["first_divergence"], invariant["first_divergence"]) == (5, None)
    assert stock["most_common"] == max(share.values()) == share[4]
    assert invariant["most_common"] == 23
    assert stock["flips"] == {"tie": 1, "near tie": 0, "confident": 0, "unknown": 0}
    assert stock["tokens_per_second"] == pytest.approx(1000)
    assert invariant["relative_cost"] == pytest.approx(1)
    assert measured.complete
    assert measured.finished is not None


def test_every_completion_of_the_engine_is_in_the_run_and_no_other(whole: Run) -> None:
    engine = Engine()
    expected = Counter(
        (condition.condition_id, completion.fingerprint)
        for condition in conditions_of(EXPERIMENT)
        for trial in plan_trials(EXPERIMENT, condition)
        for _, completion in engine.run_trial(trial).completions
    )
    assert counts(whole) == expected
    assert len({fingerprint for _, fingerprint in expected}) > 4
    assert counts(load(whole.path)) == expected


def test_what_is_returned_is_what_is_on_disk(whole: Run) -> None:
    stored = load(whole.path)
    assert stored.summary == whole.summary
    assert (stored.finished, stored.conditions) == (whole.finished, whole.conditions)
    assert stored.experiment == EXPERIMENT
    assert stored.environment["packages"]["detcheck"]


def test_conditions_are_measured_in_the_order_of_the_grid(tmp_path: Path) -> None:
    engine = Engine()
    run(EXPERIMENT, out=tmp_path / "run", engine=engine)
    assert engine.asked == [
        (condition.condition_id, trial.index)
        for condition in conditions_of(EXPERIMENT)
        for trial in plan_trials(EXPERIMENT, condition)
    ]
    assert (engine.asked[0], engine.asked[-1]) == (FIRST, LAST)
    assert engine.closed


def test_a_run_without_a_name_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    measured = run(EXPERIMENT, engine=Engine())
    assert measured.path == Path("results/runs") / measured.run_id
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", measured.run_id)


def test_failed_requests_are_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    measured = run(EXPERIMENT, out=tmp_path / "run", engine=Engine(fail_rate=0.3))
    failed = sum(record.failed for record in measured.conditions)
    assert 0 < failed < 120
    assert failed == int((measured.completions.variant < 0).sum())
    assert sum(record.completed for record in measured.conditions) == 120 - failed
    assert sum(row["failed"] for row in measured.summary) == failed
    assert measured.complete


def test_a_run_in_a_thread_is_measured_too(tmp_path: Path, whole: Run) -> None:
    measured: list[Run] = []
    thread = threading.Thread(
        target=lambda: measured.append(run(EXPERIMENT, out=tmp_path / "run", engine=Engine()))
    )
    thread.start()
    thread.join(60)
    assert_same(measured[0], whole)
