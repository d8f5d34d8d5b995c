"""Finds the op that changed an answer: replays a request alone and in a batch, and compares ops.

The engine replays both up to the token at which they diverge. The trace names the first op whose
rows for the request differ while its inputs agree bit for bit. It then gives each layer's
difference at that token, and the change of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch

from detcheck.engines import open_engine
from detcheck.engines.in_process import InProcessEngine
from detcheck.errors import MeasurementError, UsageError
from detcheck.grid import Condition
from detcheck.kernels.settings import STOCK
from detcheck.probes.calls import CallPair
from detcheck.probes.growth import Kept, call_pair, first_op, growth
from detcheck.probes.recorder import ComparingRecorder, DifferingOp, ReferenceRecorder
from detcheck.probes.replay import Replayed, StepObserver, replay
from detcheck.probes.subject import Subject, subject_of_prompt, subject_of_run
from detcheck.probes.trace_results import FirstOp, FlipSide, LayerGrowth, Trace, TraceFlip
from detcheck.traffic import Trial

__all__ = ["FIRST_PASSES", "Subject", "subject_of_prompt", "subject_of_run", "trace"]

FIRST_PASSES = 4
"""Forward passes recorded at first under stock kernels; all are if no op differs in these."""


def trace(
    subject: Subject,
    kernels: str | None = None,
    on_calls: Callable[[CallPair], None] | None = None,
) -> Trace:
    """Replay a subject alone and in its batch, and compare op by op.

    `kernels` replaces the kernels setting of the subject's condition. If an op differs, `on_calls`
    is called with its two calls and all their inputs. Raises UsageError if the engine runs in
    another process, ModelError if the model cannot be loaded, and MeasurementError if the replayed
    request gives no token.
    """
    started = perf_counter()
    engine = open_engine(subject.experiment, subject.target)
    if not isinstance(engine, InProcessEngine):
        raise UsageError(
            'Only models in this process can be traced: use `engine="continuous"` or "static".'
        )
    try:
        in_force = kernels or subject.trial.condition.kernels
        return _trace(engine, subject, in_force, started, on_calls)
    finally:
        engine.close()


def _trace(
    engine: InProcessEngine,
    subject: Subject,
    kernels: str,
    started: float,
    on_calls: Callable[[CallPair], None] | None,
) -> Trace:
    sides = _Sides(engine, subject, kernels)
    # Under stock kernels ops differ within a few passes or never: record these first.
    windows = (FIRST_PASSES, subject.num_tokens) if kernels == STOCK else (subject.num_tokens,)
    for window in windows:
        alone, batch, comparison = _compare(sides, subject.num_tokens, window)
        if comparison.found is not None or window >= len(batch.tokens):
            break
    first, layers = _measure(sides, comparison.found, len(batch.tokens), on_calls)
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
            Condition(condition.prompt_index, condition.kernels, 1, 1, condition.placement),
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
    sides: _Sides,
    found: DifferingOp | None,
    num_steps: int,
    on_calls: Callable[[CallPair], None] | None,
) -> tuple[FirstOp | None, tuple[LayerGrowth, ...]]:
    """Replay both again and keep values: of the op found, and of each layer at the last step."""
    with_call = on_calls is not None
    kept = [Kept(sides.model, found, num_steps - 1, with_call=with_call) for _ in range(2)]
    replayed = sides.alone(num_steps, kept[0])
    sides.logits_alone = replayed.logits
    if found is None:
        return None, ()
    sides.batch(num_steps, kept[1])
    calls = call_pair(*kept)
    if on_calls is not None and calls is not None:
        on_calls(calls)
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
