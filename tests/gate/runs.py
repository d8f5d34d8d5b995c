"""Run directories written from a script, so that the right verdict on them is known beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asking import ask, conditions_of

from detcheck.analysis.analyse import analyse
from detcheck.analysis.results import Analysis
from detcheck.completion import Completion
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.evidence import ModelIdentity
from detcheck.gate import Verdict
from detcheck.grid import Condition
from detcheck.kernels.settings import STOCK
from detcheck.rundir import RunWriter, load
from detcheck.traffic import Trial, plan_trials

ENVIRONMENT = {"packages": {"torch": "2.12.0", "transformers": "5.17.0"}, "device": "cpu"}
SMALL = {
    "prompts": ("Why is the sky blue?",),
    "batch_sizes": (1, 4, 8),
    "completions": 48,
    "max_new_tokens": 12,
}
"""48 completions, of which 32 are comparisons: the others are alone, or exact repeats."""
Change = Callable[[Completion], Completion]


class SeededScript(ScriptedEngine):
    """Answers each seed with a first token of its own; batches of `broken_at` take the next one's.

    `shift` gives every seed the answer of a later one.
    """

    def __init__(self, *, broken_at: int = 0, shift: int = 0):
        super().__init__()
        self.broken_at = broken_at
        self.shift = shift

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        result = super().run_trial(trial, on_tokens)
        broken = trial.condition.batch_size == self.broken_at
        first = 90 + trial.condition.seed + self.shift + broken
        answers = tuple(
            (position, dataclasses.replace(answer, token_ids=(first, *answer.token_ids[1:])))
            for position, answer in result.completions
        )
        return dataclasses.replace(result, completions=answers)


def write(
    path: Path,
    script: ScriptedEngine | None = None,
    *,
    environment: Mapping[str, Any] = ENVIRONMENT,
    stop_after: int | None = None,
    prove: bool = True,
    alive: bool = True,
    finished: str = "2026-01-01T00:01:00Z",
    identity: ModelIdentity | None = None,
    change: Change = lambda completion: completion,
    **experiment: Any,
) -> Path:
    """Carry out an experiment with a scripted engine and write it to `path`, as the runner does.

    It ends after `stop_after` conditions. If `alive` is true, the log-probabilities of stock
    kernels move under load, as those of a real engine do. `change` is applied to each completion.
    """
    asked, target = ask(**{**SMALL, **experiment})
    engine = script or ScriptedEngine()
    writer = RunWriter.create(
        path,
        asked,
        target,
        environment,
        run_id=path.name,
        version="0.0.0",
        created="2026-01-01T00:00:00Z",
        model=identity,
    )
    for index, condition in enumerate(conditions_of(asked, target)[:stop_after]):
        for trial in plan_trials(asked, condition):
            result = engine.run_trial(trial)
            answers = [
                (position, change(moved(answer, condition) if alive else answer))
                for position, answer in result.completions
            ]
            writer.append_trial(
                index,
                trial.index,
                answers,
                elapsed_s=result.elapsed_s,
                generated_tokens=result.generated_tokens,
            )
        writer.set_status(index, "done")
    for kernels in asked.kernels if prove else ():
        writer.set_proof(engine.proof(kernels))
    writer.finish([], None if stop_after is not None else finished)
    writer.close()
    return path


def moved(answer: Completion, condition: Condition) -> Completion:
    """The answer with log-probabilities that depend on the batch size, if its kernels are stock."""
    if condition.kernels != STOCK or condition.batch_size == 1 or answer.top_two is None:
        return answer
    logprobs = tuple(value - 1e-6 * condition.batch_size for value in answer.top_two.logprobs)
    return dataclasses.replace(
        answer, top_two=dataclasses.replace(answer.top_two, logprobs=logprobs)
    )


def analysed(path: Path, script: ScriptedEngine | None = None, **options: Any) -> Analysis:
    """`write` a run, load it again and analyse it."""
    return analyse(load(write(path, script, **options)))


DIVERGING = ScriptedEngine([Planted(5, 3, min_batch_size=4)])
"""Stock kernels give a second answer from batches of four on."""


def rules(verdict: Verdict, effect: str) -> set[str]:
    """The rules that have a finding of `effect`."""
    return {finding.rule for finding in verdict.findings if finding.effect == effect}
