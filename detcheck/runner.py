"""Experiment × target → run directory. Prints nothing; a listener is called as it goes on."""

from __future__ import annotations

import secrets
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from detcheck import __version__, environment, rundir
from detcheck.analysis import analyse
from detcheck.analysis.summary import summary_rows
from detcheck.engines import Connection, Engine, TrialResult, open_engine
from detcheck.engines.base import AsksAgain, ChecksEndpoints, IdentifiesModel, InFlight, OnWait
from detcheck.errors import MeasurementError, OutOfMemory, RunDirectoryError, StorageError
from detcheck.evidence import EndpointCheck, KernelsProof, ModelIdentity
from detcheck.experiment import Experiment
from detcheck.grid import Condition, conditions
from detcheck.listener import Listener
from detcheck.rundir import Run, RunWriter
from detcheck.rundir.folder import check_vacant
from detcheck.targets import InProcess, Target
from detcheck.text import one_line
from detcheck.traffic import Trial, iterate_trials

RUNS_FOLDER = Path("results/runs")


def new_run_id() -> str:
    """A fresh name for a run: UTC time and six random hex digits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def run(
    experiment: Experiment,
    target: Target | None = None,
    out: str | Path | None = None,
    *,
    engine: Engine | None = None,
    connection: Connection | None = None,
    listener: Listener | None = None,
) -> Run:
    """Run an experiment against a target into a new directory, and return the loaded run.

    `target` is the embedded model in this process by default. `out` must be empty or not exist; by
    default it is `results/runs/<run_id>`. `engine` replaces the target's own; `connection` holds
    keys and timeouts for servers. Ctrl-C and failures of single conditions end early and keep the
    trials that were measured: see `Run.complete`. Raises DetcheckError if nothing can be measured
    or written.
    """
    target = target or getattr(engine, "target", None) or InProcess()
    experiment = target.settle(experiment)
    run_id = new_run_id()
    path = Path(out) if out is not None else RUNS_FOLDER / run_id
    check_vacant(path)  # before a model is loaded in vain
    with ExitStack() as held:
        engine = engine or open_engine(experiment, target, connection, _on_wait(listener))
        held.callback(engine.close)
        identity = _identity(engine, listener)
        writer = RunWriter.create(
            path,
            experiment,
            target,
            environment.collect(_device(target)),
            run_id=run_id,
            version=__version__,
            created=_now(),
            model=identity,
        )
        held.callback(writer.close)
        return _Execution(experiment, target, engine, writer, listener or Listener()).go()


def resume(
    path: str | Path,
    *,
    experiment: Experiment | None = None,
    target: Target | None = None,
    engine: Engine | None = None,
    connection: Connection | None = None,
    listener: Listener | None = None,
) -> Run:
    """Go on with an interrupted run after its last committed trial.

    `connection` is given anew: no run keeps it. Raises RunDirectoryError if `experiment` or
    `target` is given and differs from the run's, if the environment has changed in something that
    can change an answer, or if the model is another one now.
    """
    folder = Path(path)
    stored = rundir.load(folder)
    for ours, theirs in ((experiment, stored.experiment), (target, stored.target)):
        if ours is not None and ours != theirs:
            raise RunDirectoryError(
                f"{folder} was run with {_difference(theirs, ours)}: resume it without that "
                "option, or start a new run."
            )
    with ExitStack() as held:
        engine = engine or open_engine(
            stored.experiment, stored.target, connection, _on_wait(listener)
        )
        held.callback(engine.close)
        _check_environment(stored)
        _check_model(stored, _identity(engine, listener))
        writer, loaded = RunWriter.resume(folder)
        held.callback(writer.close)
        execution = _Execution(
            stored.experiment, stored.target, engine, writer, listener or Listener()
        )
        execution.remember(loaded)
        return execution.go()


def _device(target: Target) -> str | None:
    """The device whose settings matter; None if a server computes and torch has no part in it."""
    return getattr(target, "device", "auto") if target.traits.computes_here else None


def _identity(engine: Engine, listener: Listener | None) -> ModelIdentity:
    """Which model answers; the listener is told."""
    identity = engine.model_identity() if isinstance(engine, IdentifiesModel) else ModelIdentity()
    if listener is not None:
        listener.model_identified(identity)
    return identity


def _check_environment(run: Run) -> None:
    changes = environment.differences(run.environment, environment.collect(_device(run.target)))
    if changes:
        raise RunDirectoryError(
            f"{run.path} cannot be resumed, its environment has changed ({changes[0]}): start a "
            "new run."
        )


def _check_model(run: Run, now: ModelIdentity) -> None:
    """Raise RunDirectoryError if the model is another one than when the run began."""
    for name in now.__struct_fields__:
        before, after = getattr(run.model, name), getattr(now, name)
        if before and after and before != after:
            change = f"model's {name.replace('_', ' ')} has changed"
            if name == "prompt_digests":
                change = "prompts have become other token ids (does the chat template hold a date?)"
            raise RunDirectoryError(f"{run.path} cannot be resumed, the {change}: start a new run.")


class _Execution:
    """One pass over the conditions that are not done yet."""

    def __init__(
        self,
        experiment: Experiment,
        target: Target,
        engine: Engine,
        writer: RunWriter,
        listener: Listener,
    ):
        self.experiment = experiment
        self.target = target
        self.engine = engine
        self.writer = writer
        self.listener = listener
        self._seen: defaultdict[tuple[int, str, int], set[str]] = defaultdict(set)
        self._out_of_memory_at: dict[str, int] = {}
        self._proofs_before: dict[str, KernelsProof] = {}
        self._checks_before: tuple[EndpointCheck, ...] = ()

    def remember(self, run: Run) -> None:
        """Take over the variants, proofs and checks of a run that is resumed."""
        self._proofs_before = dict(run.proofs)
        self._checks_before = run.endpoint_checks
        table = run.completions
        for condition, variant in set(zip(table.condition, table.variant, strict=True)):
            if variant >= 0:
                record = run.conditions[condition]
                fingerprint = run.variants[variant].fingerprint
                self._seen[record.prompt_index, record.kernels, record.seed].add(fingerprint)

    def go(self) -> Run:
        """Measure, summarise and load the result back from disk, verified."""
        finished = False
        try:
            self.listener.endpoints_checked(self._keep_checks())
            self.listener.run_started(self.writer.path, self.writer.records)
            for index, condition in enumerate(conditions(self.experiment, self.target)):
                self._measure(index, condition)
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
        ended = _now() if finished else None
        self.writer.finish(summary, ended)
        return replace(run, summary=tuple(summary), finished=ended)

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

    def _measure(self, index: int, condition: Condition) -> None:
        """Run the trials of one condition that are not committed yet."""
        record = self.writer.records[index]
        if record.status == "done":
            return
        limit = self._out_of_memory_at.get(condition.kernels)
        if limit is not None and condition.batch_size >= limit:
            self._fail(index, f"Not tried: memory ran out at batch size {limit} before.")
            return
        self.writer.set_status(index, "running")
        self.listener.condition_started(index, record)
        try:
            for trial in iterate_trials(self.experiment, condition, record.trials):
                self._commit(index, trial)
        except StorageError:
            raise
        except MeasurementError as error:
            if isinstance(error, OutOfMemory):
                self._out_of_memory_at[condition.kernels] = condition.batch_size
            self._fail(index, str(error))
            return
        self.writer.set_status(index, "done")
        self.writer.save()
        self.listener.condition_finished(index, self.writer.records[index])

    def _commit(self, index: int, trial: Trial) -> None:
        def on_tokens(tokens: int, requests: InFlight | None = None, /) -> None:
            self.listener.tokens_generated(index, tokens)
            if requests is not None:
                self.listener.requests_in_flight(index, requests)

        result = self.engine.run_trial(trial, on_tokens)
        condition = trial.condition
        with _uninterrupted():
            self.writer.set_proof(self._proof(condition.kernels))
            self.writer.append_trial(
                index,
                trial.index,
                result.completions,
                elapsed_s=result.elapsed_s,
                generated_tokens=result.generated_tokens,
                load=result.load,
                filler_failures=result.filler_failures,
                retries=result.retries,
            )
        self.listener.trial_finished(
            index, self.writer.records[index], self._distinct(condition, result)
        )

    def _proof(self, kernels: str) -> KernelsProof:
        """The proof of `kernels` of this pass, joined with the proof before a resume."""
        now, before = self.engine.proof(kernels), self._proofs_before.get(kernels)
        return now if before is None else _joined(before, now)

    def _distinct(self, condition: Condition, result: TrialResult) -> int:
        """Variants of the condition's prompt, kernels and seed, this trial included."""
        seen = self._seen[condition.prompt_index, condition.kernels, condition.seed]
        seen.update(
            completion.fingerprint for _, completion in result.completions if not completion.failed
        )
        return len(seen)

    def _fail(self, index: int, error: str) -> None:
        self.writer.set_status(index, "failed", error)
        self.writer.save()
        self.listener.condition_finished(index, self.writer.records[index])


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


def _difference(stored: Experiment | Target, asked: Experiment | Target) -> str:
    """The first field that differs, such as `completions 48, not 64`."""
    left, right = stored.to_dict(), asked.to_dict()
    name = next(name for name in (*left, *right) if left.get(name) != right.get(name))
    return f"{name.replace('_', ' ')} {_shown(left.get(name))}, not {_shown(right.get(name))}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return one_line(", ".join(map(str, value)))[:80]
    return "unset" if value is None else one_line(str(value))[:80]


def _on_wait(listener: Listener | None) -> OnWait | None:
    return None if listener is None else listener.waiting_for


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
