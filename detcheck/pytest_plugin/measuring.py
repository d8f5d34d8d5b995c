"""Measuring for a determinism test: its options, its model, and its turn among workers."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from detcheck.engines.base import Engine
from detcheck.errors import UsageError
from detcheck.experiment import Experiment
from detcheck.gate.options import GateOptions
from detcheck.listener import Listener
from detcheck.rundir import Run
from detcheck.targets import InProcess, Target

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

Models = dict[Any, Any]
"""Models that were loaded in this process, by name and loading options."""


def split(options: Mapping[str, Any]) -> tuple[Experiment, GateOptions]:
    """The experiment and the gate's options that a test names; raises UsageError for others."""
    asked = set(Experiment.__struct_fields__)
    known = asked | set(GateOptions.__struct_fields__)
    for name in sorted(set(options) - known):
        near = difflib.get_close_matches(name, sorted(known), 1, cutoff=0.5)
        advice = f" Did you mean `{near[0]}`?" if near else ""
        raise UsageError(f"Unknown option `{name}` of a determinism test.{advice}")
    experiment = Experiment(**{name: value for name, value in options.items() if name in asked})
    gate = {name: value for name, value in options.items() if name not in asked}
    return experiment, GateOptions(**gate)


def measure(experiment: Experiment, target: Target | None, folder: Path, models: Models) -> Run:
    """Run an experiment into `folder`, with a model that earlier tests may have loaded.

    Raises UsageError if `target` is none, and KeyboardInterrupt after Ctrl-C.
    """
    from detcheck.runner import run

    target = InProcess() if target is None else target
    if not isinstance(target, Target):
        raise UsageError(
            "`target` must be a target, such as detcheck.InProcess(model=…) or "
            f"detcheck.Served(endpoints=(…,)), not {target!r}."
        )
    # The model of such a target is an object of this process, which tests can share.
    here = target.traits.ops_visible
    engine = _engine(target.settle(experiment), target, models) if here else None
    listener = _Interrupts()
    measured = run(experiment, target, folder, engine=engine, listener=listener)
    if listener.came:
        raise KeyboardInterrupt
    return measured


@contextmanager
def turn(lock: Path | None) -> Iterator[None]:
    """Wait until no other process measures that has the same lock file; None: do not wait.

    Two measurements of one server at the same time would be in each other's batches.
    """
    if lock is None or fcntl is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Interrupts(Listener):
    """Keeps whether Ctrl-C was pressed: a run ends early then, and so must pytest."""

    def __init__(self) -> None:
        self.came = False

    def interrupted(self) -> None:
        self.came = True


def _engine(experiment: Experiment, target: Any, models: Models) -> Engine:
    """The target's engine around a model that earlier tests may have loaded."""
    from detcheck.models import load

    options = {
        name: getattr(target, name) for name in ("revision", "dtype", "device", "trust_remote_code")
    }
    key = (target.model, *options.values())
    if key not in models:
        models[key] = load(target.model, **options)
    module, _, name = target.factory.partition(":")
    engine: Engine = getattr(import_module(module), name)(models[key], experiment, target)
    return engine
