"""The trials of a run, one after the other, each committed before the next begins."""

from __future__ import annotations

import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec

from detcheck import rundir
from detcheck.analysis import analyse
from detcheck.analysis.summary import summary_rows
from detcheck.budget import Answers, Budget, BudgetPlan, Deadline, cost_kind, group_of
from detcheck.engines import Engine, TrialResult
from detcheck.engines.base import AsksAgain, ChecksEndpoints, InFlight
from detcheck.errors import MeasurementError, OutOfMemory, StorageError
from detcheck.evidence import EndpointCheck, KernelsProof, LoadEvidence
from detcheck.experiment import Experiment
from detcheck.grid import Condition, conditions
from detcheck.listener import Listener
from detcheck.rundir import ENOUGH, Run, RunWriter, Status
from detcheck.targets import Target
from detcheck.traffic import Trial, iterate_trials


def utc_now() -> str:
    """The time now, as runs keep it: UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Execution:
    """One pass over the conditions that are not done yet."""

    def __init__(
        self,
        experiment: Experiment,
        target: Target,
        engine: Engine,
        writer: RunWriter,
        listener: Listener,
        budget: tuple[Budget, Deadline] | None = None,
    ):
        self.experiment = experiment
        self.target = target
        self.engine = engine
        self.writer = writer
        self.listener = listener
        self.budget = budget
        self._conditions = conditions(experiment, target)
        self._answers: Answers = defaultdict(Counter)
        self._out_of_memory_at: dict[str, int] = {}
        self._proofs_before: dict[str, KernelsProof] = {}
        self._checks_before: tuple[EndpointCheck, ...] = ()
        self._before: Run | None = None
        """The run that is resumed, as it was; None if this is a new one."""

    def remember(self, run: Run) -> None:
        """Take over the variants, proofs and checks of a run that is resumed."""
        self._before = run
        self._proofs_before = dict(run.proofs)
        self._checks_before = run.endpoint_checks
        table = run.completions
        for (condition, variant), number in Counter(
            zip(table.condition.tolist(), table.variant.tolist(), strict=True)
        ).items():
            if variant >= 0:
                answer = run.variants[variant].fingerprint
                self._answers[group_of(run.conditions[condition])][answer] += number

    def go(self) -> Run:
        """Measure, summarise and load the result back from disk, verified."""
        finished = False
        try:
            self.listener.endpoints_checked(self._keep_checks())
            self.listener.run_started(self.writer.path, self.writer.records)
            self._measure_all()
            if isinstance(self.engine, AsksAgain):
                self.engine.ask_again(at_the_end=True)
            finished = True
        except KeyboardInterrupt:
            self.writer.save()
            self.listener.interrupted()
        self._keep_checks()
        self.writer.save()
        run = rundir.load(self.writer.path)
        summary = summary_rows(analyse(run))
        ended = self._ended(run) or (utc_now() if finished else None)
        self.writer.finish(summary, ended)
        return replace(run, summary=tuple(summary), finished=ended)

    def _ended(self, run: Run) -> str | None:
        """When the run ended before it was resumed, if nothing was measured since; else None.

        So that a run does not become younger by being resumed.
        """
        if self._before is None or len(run.completions) > len(self._before.completions):
            return None
        return self._before.finished

    def _keep_checks(self) -> tuple[EndpointCheck, ...]:
        """Keep the checks of the engine's servers, beside those that failed before a resume."""
        if not isinstance(self.engine, ChecksEndpoints):
            return ()
        now = self.engine.endpoint_checks()
        named = {(check.name, check.placement) for check in now}
        failed_before = [
            check
            for check in self._checks_before
            if check.holds is False or (check.name, check.placement) not in named
        ]
        checks = tuple(dict.fromkeys((*failed_before, *now)))
        self.writer.set_endpoint_checks(checks)
        return checks

    def _measure_all(self) -> None:
        """Measure every condition to its end, or as much as the budget allows."""
        if self.budget is not None:
            self._spend(*self.budget)
            return
        for index in range(0, len(self.writer.records), self.target.traits.choices):
            record = self.writer.records[index]
            if record.status != "done" and self._begin(index):
                trials = iterate_trials(self.experiment, self._conditions[index], record.trials)
                if self._run(index, trials):
                    self._end(index, "done")

    def _spend(self, budget: Budget, deadline: Deadline) -> None:
        """Measure in a plan's order until the time has passed, then mark conditions with enough.

        No trial is begun that lasted longer than the time left when one like it ran last.
        """
        records = self.writer.records
        plan = BudgetPlan(
            self.experiment, self.target, records, self._answers, budget.min_comparisons
        )
        lasted: dict[tuple[str, str, int], float] = {}
        current: int | None = None
        for index in plan.due():
            kind = cost_kind(self._conditions[index])
            if deadline.left_s <= 0 or deadline.left_s < lasted.get(kind, 0.0):
                break
            if index != current and not self._begin(index):
                plan.close(index)
                continue
            current = index
            before = deadline.left_s
            trials = iterate_trials(self.experiment, self._conditions[index], records[index].trials)
            if not self._run(index, islice(trials, 1)):
                plan.close(index)
            elif plan.is_whole(index):
                self._end(index, "done")
                plan.close(index)
            lasted[kind] = before - deadline.left_s
        for index, record in enumerate(records):
            if record.status not in ("done", "failed") and plan.has_least(index):
                self._end(index, ENOUGH)

    def _begin(self, index: int) -> bool:
        """Announce a condition; False if its batch size is beyond the memory."""
        condition = self._conditions[index]
        limit = self._out_of_memory_at.get(condition.kernels)
        if limit is not None and condition.batch_size >= limit:
            self._fail(index, f"Not tried: memory ran out at batch size {limit} before.")
            return False
        self._set_status(index, "running")
        self.listener.condition_started(index, self.writer.records[index])
        return True

    def _run(self, index: int, trials: Iterable[Trial]) -> bool:
        """Commit trials of a condition; False if one fails, which ends the condition."""
        try:
            for trial in trials:
                self._commit(index, trial)
        except StorageError:
            raise
        except MeasurementError as error:
            if isinstance(error, OutOfMemory):
                condition = self._conditions[index]
                self._out_of_memory_at[condition.kernels] = condition.batch_size
            self._fail(index, str(error))
            return False
        return True

    def _end(self, index: int, status: Status) -> None:
        self._set_status(index, status)
        self.writer.save(if_due=True)
        for each in self._choices_of(index):
            self.listener.condition_finished(each, self.writer.records[each])

    def _choices_of(self, index: int) -> range:
        """The conditions that share the trials of condition `index`, that of the first choice."""
        return range(index, index + self.target.traits.choices)

    def _set_status(self, index: int, status: Status, error: str | None = None) -> None:
        for each in self._choices_of(index):
            self.writer.set_status(each, status, error)

    def _commit(self, index: int, trial: Trial) -> None:
        def on_tokens(tokens: int, requests: InFlight | None = None, /) -> None:
            self.listener.tokens_generated(index, tokens)
            if requests is not None:
                self.listener.requests_in_flight(index, requests)

        result = self.engine.run_trial(trial, on_tokens)
        condition = trial.condition
        with _uninterrupted():
            self.writer.set_proof(self._proof(condition.kernels))
            self._append(index, trial.index, result)
        distinct = self._distinct(condition, result)
        for each in self._choices_of(index):
            self.listener.trial_finished(each, self.writer.records[each], distinct)

    def _append(self, index: int, trial: int, result: TrialResult) -> None:
        """Commit a trial to the conditions of all its choices, that of the first choice last.

        A resume goes on after the trials of the first choice. A choice that was committed before
        the run was killed is not committed again. Time and tokens are shared out over the choices.
        """
        choices = list(zip(self._choices_of(index), result.by_choice, strict=True))
        tokens, left = divmod(result.generated_tokens, len(choices))
        for each, completions in reversed(choices):
            if self.writer.records[each].trials > trial:
                continue
            is_first = each == index
            self.writer.append_trial(
                each,
                trial,
                completions,
                elapsed_s=result.elapsed_s / len(choices),
                generated_tokens=tokens + (left if is_first else 0),
                load=result.load if is_first else _uncounted(result.load),
                filler_failures=result.filler_failures if is_first else {},
                retries=result.retries if is_first else 0,
            )

    def _proof(self, kernels: str) -> KernelsProof:
        """The proof of `kernels` of this pass, joined with the proof before a resume."""
        now, before = self.engine.proof(kernels), self._proofs_before.get(kernels)
        return now if before is None else _joined(before, now)

    def _distinct(self, condition: Condition, result: TrialResult) -> int:
        """Variants of the condition's prompt, kernels and seed, this trial included."""
        answers = self._answers[group_of(condition)]
        answers.update(
            completion.fingerprint
            for completions in result.by_choice
            for _, completion in completions
            if not completion.failed
        )
        return len(answers)

    def _fail(self, index: int, error: str) -> None:
        self._set_status(index, "failed", error)
        self.writer.save(if_due=True)
        for each in self._choices_of(index):
            self.listener.condition_finished(each, self.writer.records[each])


def _uncounted(load: LoadEvidence | None) -> LoadEvidence | None:
    """The evidence without its counts, which are those of the trial and count once."""
    if load is None:
        return None
    return msgspec.structs.replace(load, preemptions=None, prefix_cache_hits=None)


def _joined(before: KernelsProof, now: KernelsProof) -> KernelsProof:
    """The proof of a resumed run: a fault of either part is a fault of the whole."""
    calls = {
        name: before.overrides.get(name, 0) + now.overrides.get(name, 0)
        for name in {**before.overrides, **now.overrides}
    }
    checks = (before.self_check, now.self_check)
    problems = [check for check in checks if check not in (None, "passed")]
    return KernelsProof(
        now.kernels,
        calls,
        tuple(sorted({*before.missing, *now.missing})),
        problems[0] if problems else now.self_check,
    )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a Ctrl-C wait for the end of the block, so that it cannot halve a commit."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    pending: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: pending.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pending:
        handler(*pending[0])
