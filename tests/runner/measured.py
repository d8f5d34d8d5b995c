"""The experiment that these tests run, the engine that answers it, and how runs are compared."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from asking import conditions_of
from recorded import small_experiment

from detcheck import Run
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.listener import Listener
from detcheck.rundir import COMPLETIONS_FILE, VARIANTS_FILE, ConditionRecord
from detcheck.traffic import Trial, plan_trials

PLANTED = (Planted(5, 3, rate=0.4), Planted(9, 2, min_batch_size=8, rate=0.5, gap=0.01))
EXPERIMENT = small_experiment(completions=30, batch_sizes=(1, 4, 8), prompts=("Why?", "How?"))
FIRST, LAST = ("p0/stock/b1", 0), ("p1/batch-invariant/b8", 1)
MIDDLE = (("p0/batch-invariant/b1", 1), ("p0/stock/b4", 2), ("p1/stock/b1", 0))


class Engine(ScriptedEngine):
    """Plants PLANTED; remembers what it was asked and whether it was closed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(PLANTED, noise=0.1, **options)
        self.asked: list[tuple[str, int]] = []
        self.closed = False

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        self.asked.append((trial.condition.condition_id, trial.index))
        return super().run_trial(trial, on_tokens)

    def close(self) -> None:
        self.closed = True


class Recorder(Listener):
    """Writes down every call, in short."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def run_started(self, path: Path, conditions: list[ConditionRecord]) -> None:
        self.calls.append(("run", path.name, len(conditions)))

    def condition_started(self, index: int, record: ConditionRecord) -> None:
        self.calls.append(("start", index, record.status, record.completed))

    def tokens_generated(self, index: int, tokens: int) -> None:
        self.calls.append(("tokens", index, tokens))

    def trial_finished(self, index: int, record: ConditionRecord, distinct: int) -> None:
        self.calls.append(("trial", index, record.trials, distinct))

    def condition_finished(self, index: int, record: ConditionRecord) -> None:
        self.calls.append(("end", index, record.status))

    def interrupted(self) -> None:
        self.calls.append(("interrupted",))


def lines(run: Run) -> dict[str, bytes]:
    """The two files that hold what was measured. They hold no times."""
    return {name: (run.path / name).read_bytes() for name in (COMPLETIONS_FILE, VARIANTS_FILE)}


def counts(run: Run) -> Counter[tuple[str, str | None]]:
    """Completions by (condition, fingerprint)."""
    table = run.completions
    return Counter(
        (
            run.conditions[condition].condition_id,
            None if variant < 0 else run.variants[variant].fingerprint,
        )
        for condition, variant in zip(table.condition, table.variant, strict=True)
    )


def by_id(run: Run) -> dict[str, ConditionRecord]:
    return {record.condition_id: record for record in run.conditions}


def whole_plan() -> list[tuple[str, int]]:
    return [
        (condition.condition_id, trial.index)
        for condition in conditions_of(EXPERIMENT)
        for trial in plan_trials(EXPERIMENT, condition)
    ]


def assert_same(measured: Run, whole: Run) -> None:
    """Nothing tells that `measured` was disturbed, but the order where one condition failed."""
    assert measured.complete
    assert counts(measured) == counts(whole)
    assert measured.conditions == whole.conditions
    assert measured.summary == whole.summary
    assert {v.fingerprint for v in measured.variants} == {v.fingerprint for v in whole.variants}
