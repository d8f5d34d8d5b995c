"""Finds the op that changed an answer: replays a request alone and in a batch, and compares ops.

The engine replays both up to the token at which they diverge. The trace names the first op whose
rows for the request differ while its inputs agree bit for bit. It then gives each layer's
difference at that token, and the change of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch

from detcheck.analysis import analyse
from detcheck.analysis.results import Divergence, Group
from detcheck.engines import open_engine
from detcheck.engines.in_process import InProcessEngine
from detcheck.errors import MeasurementError, UsageError
from detcheck.experiment import Experiment
from detcheck.grid import Condition, conditions
from detcheck.kernels.settings import STOCK
from detcheck.probes.growth import Kept, first_op, growth
from detcheck.probes.recorder import ComparingRecorder, DifferingOp, ReferenceRecorder
from detcheck.probes.replay import Replayed, StepObserver, replay
from detcheck.probes.trace_results import FirstOp, FlipSide, LayerGrowth, Trace, TraceFlip
from detcheck.rundir import Run
from detcheck.targets import Target
from detcheck.traffic import Trial, plan_trials

FIRST_PASSES = 4
"""Forward passes recorded at first under stock kernels; all are if no op differs in these."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One request of one trial, to be compared with the same request alone."""

    experiment: Experiment
    target: Target
    trial: Trial
    request: int
    """Its position in the trial."""
    num_tokens: int
    """Most tokens to replay."""


def subject_of_run(run: Run, prompt_index: int | None = None) -> Subject:
    """The request of a run that diverges from its reference at the earliest token.

    Raises UsageError if no answers diverge, or if no engine in this process can replay the run.
    """
    if not run.traits.ops_visible:
        raise UsageError(
            f"The run was measured by the engine {run.target.engine!r}, which has no ops to "
            "trace: trace a run of the continuous or static engine."
        )
    group, seed, divergence = _earliest(run, prompt_index)
    variant = next(i for i, v in enumerate(run.variants) if v is divergence.variant)
    table = run.completions
    for row in range(len(table)):
        record = run.conditions[int(table.condition[row])]
        found = (record.prompt_index, record.kernels, record.seed)
        wanted = (group.prompt_index, group.kernels, seed)
        if found == wanted and int(table.variant[row]) == variant and record.batch_size > 1:
            condition = _condition(run, record.condition_id)
            trial = plan_trials(run.experiment, condition)[int(table.trial[row])]
            request = int(table.request[row])
            return Subject(run.experiment, run.target, trial, request, divergence.position + 1)
    raise UsageError(
        f"The answers of {run.path} diverge within a batch of one, so load cannot be the cause: "
        "trace a run whose answers diverge in a larger batch."
    )


def _earliest(run: Run, prompt_index: int | None) -> tuple[Group, int, Divergence]:
    """The earliest divergence, with its group and seed; of stock kernels if these diverge."""
    diverged = [
        (group, split.seed, divergence)
        for group in analyse(run).groups
        for split in group.by_seed
        for divergence in split.divergences
        if prompt_index in (None, group.prompt_index)
    ]
    if not diverged:
        raise UsageError(
            f"No answers diverge in {run.path}, so there is no divergence to trace: to compare ops "
            "all the same, trace a prompt at two `batch_sizes`."
        )
    # Stock first: its cause may also explain a divergence under invariant kernels.
    return min(diverged, key=lambda each: (each[0].kernels != STOCK, each[2].position))


def _condition(run: Run, condition_id: str) -> Condition:
    every = conditions(run.experiment, run.target)
    return next(condition for condition in every if condition.condition_id == condition_id)


def subject_of_prompt(experiment: Experiment, target: Target) -> Subject:
    """The first probe of the first trial at the largest batch size of `experiment`."""
    condition = max(conditions(experiment, target), key=lambda c: c.batch_size)
    trial = plan_trials(experiment, condition)[0]
    request = next(i for i, planned in enumerate(trial.requests) if planned.is_probe)
    return Subject(experiment, target, trial, request, experiment.max_new_tokens)


def trace(subject: Subject, kernels: str | None = None) -> Trace:
    """Replay a subject alone and in its batch, and compare op by op.

    `kernels` replaces the kernels setting of the subject's condition. Raises UsageError if the
    engine runs in another process, ModelError if the model cannot be loaded, and MeasurementError
    if the replayed request gives no token.
    """
    started = perf_counter()
    engine = open_engine(subject.experiment, subject.target)
    if not isinstance(engine, InProcessEngine):
        raise UsageError(
            'Only models in this process can be traced: use `engine="continuous"` or "static".'
        )
    try:
        return _trace(engine, subject, kernels or subject.trial.condition.kernels, started)
    finally:
        engine.close()


def _trace(engine: InProcessEngine, subject: Subject, kernels: str, started: float) -> Trace:
    sides = _Sides(engine, subject, kernels)
    # Under stock kernels ops differ within a few passes or never: record these first.
    windows = (FIRST_PASSES, subject.num_tokens) if kernels == STOCK else (subject.num_tokens,)
    for window in windows:
        alone, batch, comparison = _compare(sides, subject.num_tokens, window)
        if comparison.found is not None or window >= len(batch.tokens):
            break
    first, layers = _measure(sides, comparison.found, len(batch.tokens))
    return Trace(
        kernels,
        len(subject.trial.requests),
        first,
        layers,
        _flip(engine, alone, batch, sides),
        comparison.compared.ops,
        comparison.compared.tensors,
        len(comparison.compared.steps),
        round(perf_counter() - started, 3),
    )


def _compare(
    sides: _Sides, num_tokens: int, window: int
) -> tuple[Replayed, Replayed, ComparingRecorder]:
    """Both replays, with their first `window` forward passes compared."""
    reference = ReferenceRecorder(sides.model, window)
    alone = sides.alone(num_tokens, reference)
    comparison = ComparingRecorder(sides.model, reference)
    batch = sides.batch(len(alone.tokens), comparison, expected=alone.tokens)
    if not batch.tokens or not alone.tokens:
        raise MeasurementError("The request produced no token in its replay: nothing to compare.")
    reference.ops.clear()
    return alone, batch, comparison


class _Sides:
    """The same request replayed alone and in its batch."""

    def __init__(self, engine: InProcessEngine, subject: Subject, kernels: str):
        self._engine = engine
        self._subject = subject
        self._kernels = kernels
        self.logits_alone: torch.Tensor | None = None

    def alone(self, num_steps: int, observer: StepObserver | None = None) -> Replayed:
        planned = self._subject.trial.requests[self._subject.request]
        condition = self._subject.trial.condition
        trial = Trial(
            Condition(condition.prompt_index, condition.kernels, 1, 1),
            0,
            (replace(planned, is_probe=True, arrival_step=0),),
        )
        return replay(self._engine, trial, 0, self._kernels, num_steps, observer)

    def batch(
        self,
        num_steps: int,
        observer: StepObserver | None = None,
        expected: list[int] | None = None,
    ) -> Replayed:
        subject = self._subject
        return replay(
            self._engine,
            subject.trial,
            subject.request,
            self._kernels,
            num_steps,
            observer,
            expected,
        )

    @property
    def model(self) -> Any:
        return self._engine.loaded.model


def _measure(
    sides: _Sides, found: DifferingOp | None, num_steps: int
) -> tuple[FirstOp | None, tuple[LayerGrowth, ...]]:
    """Replay both again and keep values: of the op found, and of each layer at the last step."""
    kept = [Kept(sides.model, found, num_steps - 1) for _ in range(2)]
    replayed = sides.alone(num_steps, kept[0])
    sides.logits_alone = replayed.logits
    if found is None:
        return None, ()
    sides.batch(num_steps, kept[1])
    layers = tuple(
        growth(name, alone, kept[1].layers[name])
        for name, alone in kept[0].layers.items()
        if name in kept[1].layers
    )
    return first_op(found, *kept), layers


def _flip(engine: InProcessEngine, alone: Replayed, batch: Replayed, sides: _Sides) -> TraceFlip:
    position = len(batch.tokens) - 1
    change = 0.0
    if sides.logits_alone is not None and batch.logits is not None:
        change = float((sides.logits_alone - batch.logits).abs().max())
    return TraceFlip(
        position,
        alone.tokens[position] != batch.tokens[position],
        _side(engine, alone, position),
        _side(engine, batch, position),
        change,
    )


def _side(engine: InProcessEngine, replayed: Replayed, position: int) -> FlipSide:
    decode = engine.loaded.tokenizer.decode
    return FlipSide(
        replayed.tokens[position],
        decode([replayed.tokens[position]]),
        decode([replayed.runners_up[position]]),
        round(replayed.gaps[position], 6),
    )
