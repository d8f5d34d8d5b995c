"""Experiment × target → run directory. Prints nothing; a listener is called as it goes on."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from detcheck import __version__, environment, rundir
from detcheck.budget import Budget
from detcheck.engines import Connection, Engine, open_engine
from detcheck.engines.base import IdentifiesModel, OnWait
from detcheck.errors import ChangedRunError, UsageError
from detcheck.evidence import ModelIdentity
from detcheck.execution import Execution, utc_now
from detcheck.experiment import Experiment
from detcheck.listener import Listener
from detcheck.rundir import Run, RunWriter
from detcheck.rundir.folder import check_vacant
from detcheck.targets import InProcess, Target
from detcheck.text import one_line

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
    budget: Budget | None = None,
) -> Run:
    """Run an experiment against a target into a new directory, and return the loaded run.

    `target` is the embedded model in this process by default. `out` must be empty or not exist; by
    default it is `results/runs/<run_id>`. `engine` replaces the target's own; `connection` holds
    keys and timeouts for servers. If `budget` ends, conditions that have the least that a verdict
    needs count as measured, and the others are left for `resume`. Ctrl-C and failures of single
    conditions end early and keep the trials that were measured: see `Run.complete`. Raises
    DetcheckError if nothing can be measured or written.
    """
    time = None if budget is None else (budget, budget.begin())
    target = target or getattr(engine, "target", None) or InProcess()
    experiment = target.settle(experiment)
    _check_budget(budget, target)
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
            created=utc_now(),
            model=identity,
        )
        held.callback(writer.close)
        writer.set_budget(None if budget is None else budget.seconds)
        return Execution(experiment, target, engine, writer, listener or Listener(), time).go()


def resume(
    path: str | Path,
    *,
    experiment: Experiment | None = None,
    target: Target | None = None,
    engine: Engine | None = None,
    connection: Connection | None = None,
    listener: Listener | None = None,
    budget: Budget | None = None,
) -> Run:
    """Go on with an interrupted run after its last committed trial.

    `connection` and `budget` are given anew: no run is bound to those of before. Raises
    ChangedRunError if `experiment` or `target` is given and differs from the run's, if the
    environment has changed in something that can change an answer, or if the model is another one
    now.
    """
    time = None if budget is None else (budget, budget.begin())
    folder = Path(path)
    stored = rundir.load(folder)
    for ours, theirs in ((experiment, stored.experiment), (target, stored.target)):
        if ours is not None and ours != theirs:
            raise ChangedRunError(
                f"{folder} was run with {_difference(theirs, ours)}: resume it without that "
                "option, or start a new run."
            )
    _check_budget(budget, stored.target)
    with ExitStack() as held:
        engine = engine or open_engine(
            stored.experiment, stored.target, connection, _on_wait(listener)
        )
        held.callback(engine.close)
        _check_environment(stored)
        _check_model(stored, _identity(engine, listener))
        writer, loaded = RunWriter.resume(folder)
        held.callback(writer.close)
        execution = Execution(
            stored.experiment, stored.target, engine, writer, listener or Listener(), time
        )
        writer.set_budget(None if budget is None else budget.seconds)
        execution.remember(loaded)
        return execution.go()


def _check_budget(budget: Budget | None, target: Target) -> None:
    """Raise UsageError if a budget would have to plan the choices of requests."""
    if budget is not None and target.traits.choices > 1:
        raise UsageError(
            "A time budget cannot plan requests for several `choices`: leave one of them out."
        )


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
        raise ChangedRunError(
            f"{run.path} cannot be resumed, its environment has changed ({changes[0]}): start a "
            "new run."
        )


def _check_model(run: Run, now: ModelIdentity) -> None:
    """Raise ChangedRunError if the model is another one than when the run began."""
    for name in now.__struct_fields__:
        before, after = getattr(run.model, name), getattr(now, name)
        if before and after and before != after:
            change = f"model's {name.replace('_', ' ')} has changed"
            if name == "prompt_digests":
                change = "prompts have become other token ids (does the chat template hold a date?)"
            raise ChangedRunError(f"{run.path} cannot be resumed, the {change}: start a new run.")


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
