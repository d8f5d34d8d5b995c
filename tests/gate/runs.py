"""Run directories written from a script: what the gate must say of them is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asking import ask, conditions_of

from detcheck.analysis.analyse import analyse
from detcheck.analysis.results import Analysis
from detcheck.completion import Completion
from detcheck.engines.scripted import ScriptedEngine
from detcheck.rundir import RunWriter, load
from detcheck.traffic import plan_trials

ENVIRONMENT = {"packages": {"torch": "2.12.0", "transformers": "5.17.0"}, "device": "cpu"}
SMALL = {
    "prompts": ("Why is the sky blue?",),
    "batch_sizes": (1, 4, 8),
    "completions": 24,
    "max_new_tokens": 12,
}
Change = Callable[[Completion], Completion]


def write(
    path: Path,
    engine: ScriptedEngine | None = None,
    *,
    environment: Mapping[str, Any] = ENVIRONMENT,
    stop_after: int | None = None,
    prove: bool = True,
    change: Change = lambda completion: completion,
    **experiment: Any,
) -> Path:
    """Carry out a scripted experiment and write it to `path`, as the runner does.

    `stop_after` conditions it is interrupted; `change` is applied to each completion.
    """
    asked, target = ask(**{**SMALL, **experiment})
    engine = engine or ScriptedEngine()
    writer = RunWriter.create(
        path,
        asked,
        target,
        environment,
        run_id=path.name,
        version="0.0.0",
        created="2026-01-01T00:00:00Z",
    )
    for index, condition in enumerate(conditions_of(asked, target)[:stop_after]):
        for trial in plan_trials(asked, condition):
            result = engine.run_trial(trial)
            writer.append_trial(
                index,
                trial.index,
                [(position, change(answer)) for position, answer in result.completions],
                elapsed_s=result.elapsed_s,
                generated_tokens=result.generated_tokens,
            )
        writer.set_status(index, "done")
    for kernels in asked.kernels if prove else ():
        writer.set_proof(engine.proof(kernels))
    writer.finish([], None if stop_after is not None else "2026-01-01T00:01:00Z")
    writer.close()
    return path


def analysed(path: Path, engine: ScriptedEngine | None = None, **options: Any) -> Analysis:
    """`write` a run, load it again and analyse it."""
    return analyse(load(write(path, engine, **options)))
