"""Record runs with known answers through the real run directory: what the runner does, in small."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from asking import conditions_of, settled

from detcheck.engines.base import Engine
from detcheck.engines.scripted import ScriptedEngine
from detcheck.experiment import Experiment
from detcheck.rundir import Run, RunWriter, load
from detcheck.targets import Scripted, Target
from detcheck.traffic import plan_trials

ENVIRONMENT = {"python": "3.11", "cpu": "scripted"}


def small_experiment(**fields: Any) -> Experiment:
    """An experiment for the scripted engine: 24 tokens, batches of 1 to 16."""
    return settled(**{"completions": 64, "max_new_tokens": 24} | fields)


def create(path: Path, experiment: Experiment, target: Target | None = None) -> RunWriter:
    """A new run directory whose bytes depend on nothing but its arguments."""
    return RunWriter.create(
        path,
        experiment,
        target or Scripted(),
        ENVIRONMENT,
        run_id="run",
        version="0",
        created="2026-01-01T00:00:00Z",
    )


def append_trials(
    writer: RunWriter,
    experiment: Experiment,
    engine: Engine,
    limit: int | None = None,
    target: Target | None = None,
) -> bool:
    """Append the trials that are missing, at most `limit`; True where none is missing then."""
    left = limit
    for index, condition in enumerate(conditions_of(experiment, target)):
        for trial in plan_trials(experiment, condition)[writer.records[index].trials :]:
            if left == 0:
                return False
            left = None if left is None else left - 1
            result = engine.run_trial(trial)
            writer.append_trial(
                index,
                trial.index,
                result.completions,
                elapsed_s=result.elapsed_s,
                generated_tokens=result.generated_tokens,
            )
        writer.set_status(index, "done")
    for kernels in experiment.kernels:
        writer.set_proof(engine.proof(kernels))
    writer.finish([], "2026-01-01T00:01:00Z")
    return True


def record(
    path: Path,
    engine: Engine | None = None,
    experiment: Experiment | None = None,
    target: Target | None = None,
    limit: int | None = None,
) -> Run:
    """Run `experiment` on `engine` into `path`, at most `limit` trials of it, and load it."""
    experiment = experiment or small_experiment()
    with closing(create(path, experiment, target)) as writer:
        append_trials(writer, experiment, engine or ScriptedEngine(), limit, target)
    return load(path)
