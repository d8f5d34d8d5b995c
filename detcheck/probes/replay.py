"""Generates a trial again and observes one request in it, through the engine's observer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from detcheck.engines.decoding import RankedTokens
from detcheck.engines.in_process import InProcessEngine
from detcheck.engines.passes import ForwardPass, RequestPlace
from detcheck.kernels.in_force import kernels_in_force
from detcheck.traffic import Trial


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the request."""

    index: int
    """0 is its prefill, n decodes token n."""
    place: RequestPlace
    """The request's entries in the tensors of the pass."""


class StepObserver(Protocol):
    """Watches the forward passes of the replayed request."""

    def watch(self, step: Step) -> AbstractContextManager[Any] | None:
        """A context for the forward pass of `step`; None if the step need not be observed."""
        ...


@dataclass(slots=True)
class Replayed:
    """The request's best two tokens at each step of a replay."""

    tokens: list[int] = field(default_factory=list)
    runners_up: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """Best minus second-best score, in nats."""
    logits: torch.Tensor | None = None
    """(vocabulary,) float32 on the CPU, of the last step."""


def replay(
    engine: InProcessEngine,
    trial: Trial,
    request: int,
    kernels: str,
    num_steps: int,
    observer: StepObserver | None = None,
    expected: Sequence[int] | None = None,
) -> Replayed:
    """Generate for `trial` again, up to forward pass `num_steps` of its `request` (a position).

    Ends early at the first token that differs from `expected`. Raises MeasurementError if the
    kernels fail their self-check.
    """
    follower = _Follower(request, num_steps, observer, expected)
    with ExitStack() as stack:
        packing = engine.target.pack_weights
        stack.enter_context(kernels_in_force(kernels, pack_weights=packing))
        stack.enter_context(torch.inference_mode())
        stack.callback(engine.reset)
        engine.prepare(trial)
        stack.enter_context(engine.observed_by(follower))
        with contextlib.suppress(_EndedError):
            engine.generate(trial, None)
    return follower.result


class _EndedError(Exception):
    """The replay has reached its last step."""


class _Follower:
    """Follows one request through the passes of a trial; a `PassObserver`."""

    def __init__(
        self,
        request: int,
        num_steps: int,
        observer: StepObserver | None,
        expected: Sequence[int] | None,
    ):
        self.result = Replayed()
        self._request = request
        self._num_steps = num_steps
        self._observer = observer
        self._expected = expected

    def around(self, forward_pass: ForwardPass) -> AbstractContextManager[Any] | None:
        """See `PassObserver`."""
        place = forward_pass.place(self._request)
        if place is None or self._observer is None:
            return None
        return self._observer.watch(Step(len(self.result.tokens), place))

    def scored(self, forward_pass: ForwardPass, scores: torch.Tensor, chosen: RankedTokens) -> None:
        """See `PassObserver`; ends the replay at its last step."""
        place = forward_pass.place(self._request)
        if place is None:
            return
        row, result = place.score_row, self.result
        result.tokens.append(int(chosen.best[row]))
        result.runners_up.append(int(chosen.runner_up[row]))
        result.gaps.append(float(chosen.gap[row]))
        result.logits = scores[row].detach().float().cpu().clone()
        if self._diverged() or len(result.tokens) >= self._num_steps:
            raise _EndedError

    def _diverged(self) -> bool:
        index = len(self.result.tokens) - 1
        if self._expected is None or index >= len(self._expected):
            return False
        return self.result.tokens[index] != self._expected[index]
