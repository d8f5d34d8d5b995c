"""A run within a limit of time: what it measures first, what it leaves, and what is made of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gate.runs import moved
from recorded import small_experiment
from sweeps import few

from detcheck import Run, load, resume, run
from detcheck.analysis import analyse
from detcheck.budget import Budget, BudgetPlan, least_trials
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import OutOfMemory, UsageError
from detcheck.experiment import Experiment
from detcheck.gate import GateOptions, judge
from detcheck.grid import conditions
from detcheck.kernels.settings import BATCH_INVARIANT
from detcheck.report import html
from detcheck.report.view import build_view
from detcheck.rundir import ENOUGH, ConditionRecord
from detcheck.targets import InProcess, Traits
from detcheck.traffic import Trial

from .measured import counts

PROMPTS = tuple(f"Question {number}?" for number in range(6))
ASKED = small_experiment(completions=96, batch_sizes=(1, 4, 8), prompts=PROMPTS)
SECONDS = 2.0
"""Time that a trial of the slow engine takes."""


class Slow(ScriptedEngine):
    """A trial takes `SECONDS` of a clock that only this engine moves.

    It claims to compute, and that the log-probabilities of stock kernels move under load.
    """

    target = InProcess()

    def __init__(self, planted: Any = (), **options: Any) -> None:
        super().__init__(planted, **options)
        self.now = 0.0
        self.trials: list[str] = []

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        self.now += SECONDS
        self.trials.append(trial.condition.condition_id)
        result = super().run_trial(trial, on_tokens)
        answers = tuple((at, moved(answer, trial.condition)) for at, answer in result.completions)
        return replace(result, completions=answers)

    def clock(self) -> float:
        return self.now


class SlowForOne(Slow):
    """The answers to one prompt vary."""

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        varied = trial.requests[0].prompt == PROMPTS[3]
        self.planted = (Planted(5, 3, rate=0.5), *(Planted(p, 2, rate=0.2) for p in (9, 12, 15)))
        self.planted = self.planted if varied else ()
        return super().run_trial(trial, on_tokens)


Measure = Callable[..., Run]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    """Run with so many trials' worth of time."""

    def measure(trials: float, engine: Slow, asked: Experiment = ASKED, **options: Any) -> Run:
        budget = Budget(trials * SECONDS, clock=engine.clock, **options)
        return run(asked, out=tmp_path / "run", engine=engine, budget=budget)

    return measure


def least(asked: Experiment = ASKED, comparisons: int = 20) -> int:
    target = InProcess()
    return sum(least_trials(asked, target, conditions(asked, target), comparisons))


def statuses(measured: Run) -> set[str]:
    return {record.status for record in measured.conditions}


@pytest.mark.sweep
def test_enough_time_for_all_is_a_whole_run(measure: Measure, tmp_path: Path) -> None:
    measured = measure(10_000, Slow())
    assert statuses(measured) == {"done"}
    whole = run(ASKED, out=tmp_path / "whole", engine=Slow())
    assert counts(measured) == counts(whole)
    assert not measured.can_go_on


def test_every_condition_gets_the_least_first(measure: Measure) -> None:
    engine = Slow()
    measured = measure(least(), engine)
    assert len(engine.trials) == least()
    assert measured.complete
    assert ENOUGH in statuses(measured)
    for group in analyse(measured).groups:
        assert 20 <= group.comparisons < 40


def test_what_has_the_least_is_judged_and_what_was_left_out_is_said(measure: Measure) -> None:
    judged = judge(analyse(measure(least(), Slow(planted=[Planted(5, 3)]))), GateOptions())
    assert judged.value == "pass"
    (note,) = [finding for finding in judged.findings if finding.rule == "budget"]
    assert note.effect == "note"
    assert "of 1,152 completions were measured, of 6 prompts" in note.sentence


def test_the_report_says_what_was_left_out(measure: Measure) -> None:
    page = html.render(build_view(analyse(measure(least(), Slow()))), {})
    assert "of 1,152 completions were measured, of 6 prompts" in page


def test_a_fault_is_found_within_the_budget(measure: Measure) -> None:
    engine = Slow(planted=[Planted(5, 3), Planted(5, 3, kernels=BATCH_INVARIANT)])
    assert judge(analyse(measure(least(), engine)), GateOptions()).value == "fail"


@few("trials", [0.5, 1, 7, 20, least() - 1])
def test_prompts_that_were_not_reached_are_named_and_nothing_passes(
    measure: Measure, trials: float
) -> None:
    engine = Slow(planted=[Planted(5, 3)])
    measured = measure(trials, engine)
    assert engine.now <= max(trials, 1) * SECONDS
    assert not measured.complete
    judged = judge(analyse(measured), GateOptions())
    assert judged.value == "inconclusive"
    (finding,) = [finding for finding in judged.findings if finding.rule == "run-complete"]
    assert "had what a verdict needs: " in finding.sentence
    assert PROMPTS[-1] in finding.sentence or "more" in finding.sentence
    short = [f for f in judged.findings if f.rule == "every-completion"]
    assert {f.group.prompt for f in short if f.group} >= {PROMPTS[-1]}


def test_prompts_are_finished_one_after_the_other(measure: Measure) -> None:
    measured = measure(least() / 2, Slow())
    enough = {
        index
        for index in range(len(PROMPTS))
        if all(r.status == ENOUGH for r in measured.conditions if r.prompt_index == index)
    }
    assert enough == {0, 1, 2}


def test_more_goes_where_answers_vary(measure: Measure) -> None:
    measured = measure(least() + 20, SlowForOne())
    made = {
        index: sum(r.completed for r in measured.conditions if r.prompt_index == index)
        for index in range(len(PROMPTS))
    }
    assert made[3] == max(made.values())
    others = [made[index] for index in made if index != 3]
    assert made[3] > 1.5 * max(others)


def test_without_variation_every_prompt_gets_the_same(measure: Measure) -> None:
    measured = measure(least() + 24, Slow())
    made = [
        sum(r.completed for r in measured.conditions if r.prompt_index == index)
        for index in range(len(PROMPTS))
    ]
    assert max(made) - min(made) <= 16


@pytest.mark.sweep
@few("trials", [0.5, 20, least(), least() + 11])
def test_a_resume_goes_on_to_the_whole_run(measure: Measure, trials: float, tmp_path: Path) -> None:
    measured = measure(trials, Slow(planted=[Planted(5, 3, rate=0.4)]))
    assert measured.can_go_on
    whole = run(ASKED, out=tmp_path / "whole", engine=Slow(planted=[Planted(5, 3, rate=0.4)]))
    again = resume(measured.path, engine=Slow(planted=[Planted(5, 3, rate=0.4)]))
    assert statuses(again) == {"done"}
    assert again.budget_s is None
    assert counts(again) == counts(whole)


def test_a_resume_may_have_a_budget_too(measure: Measure) -> None:
    measured = measure(20, Slow())
    engine = Slow()
    time = Budget((least() - 20) * SECONDS, clock=engine.clock)
    again = resume(measured.path, engine=engine, budget=time)
    assert again.complete
    assert ENOUGH in statuses(again)
    assert load(measured.path).budget_s == time.seconds


def test_a_stricter_gate_gets_more_comparisons(measure: Measure) -> None:
    measured = measure(least(comparisons=40), Slow(), min_comparisons=40)
    assert measured.complete
    assert min(group.comparisons for group in analyse(measured).groups) >= 40


def test_a_failed_condition_is_not_tried_again(measure: Measure) -> None:
    engine = Slow(fail_with={("p0/stock/b8", 0): OutOfMemory("no memory is left")})
    measured = measure(10_000, engine)
    failed = {r.condition_id for r in measured.conditions if r.status == "failed"}
    assert failed == {f"p{index}/stock/b8" for index in range(len(PROMPTS))}
    assert engine.trials.count("p0/stock/b8") == 1
    assert judge(analyse(measured), GateOptions()).value == "inconclusive"


def test_models_are_not_loaded_again_and_again() -> None:
    """If another kernels setting loads the model anew, the rest is measured in the grid's order."""

    class Reloading(InProcess, frozen=True, kw_only=True):
        @property
        def traits(self) -> Traits:
            return msgspec.structs.replace(super().traits, reloads=True)

    target = Reloading()
    records = [
        ConditionRecord(c.condition_id, c.prompt_index, c.kernels, c.batch_size, 0)
        for c in conditions(ASKED, target)
    ]
    plan = BudgetPlan(ASKED, target, records, defaultdict(Counter), 20)
    order = []
    for index in plan.due():
        order.append(records[index].kernels)
        records[index].trials += 1
        if plan.is_whole(index):
            plan.close(index)
    changes = sum(before != after for before, after in pairwise(order))
    assert changes == 3
    assert all(map(plan.is_whole, range(len(records))))


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_no_time_is_no_budget(seconds: float) -> None:
    with pytest.raises(UsageError, match="budget"):
        Budget(seconds)
