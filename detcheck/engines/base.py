"""What every engine is: something that answers the requests of a trial, and says how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from detcheck.completion import Completion, LoadEvidence
from detcheck.rundir import EndpointCheck, KernelsProof
from detcheck.traffic import Trial


@dataclass(frozen=True, slots=True)
class InFlight:
    """Where the requests of the trial in flight stand."""

    in_flight: int
    done: int
    failed: int


class OnTokens(Protocol):
    """Called now and then during a trial with the tokens generated so far."""

    def __call__(self, tokens: int, requests: InFlight | None = None, /) -> None:
        """`requests` is given by engines that send requests to a server."""
        ...


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What came of one trial."""

    completions: tuple[tuple[int, Completion], ...]
    """(position of the request in the trial, its completion), probes only."""
    generated_tokens: int
    """Tokens generated, fillers included."""
    elapsed_s: float
    """Wall time from the first submission to the last answer."""
    load: LoadEvidence | None = None
    """What was seen of its batches, where completions do not tell of their own."""
    filler_failures: Mapping[str, int] = field(default_factory=dict)
    """Requests that only made load and failed, by kind."""
    retries: int = 0
    """Requests that were sent again since nothing had been generated."""


class Engine(Protocol):
    """Generates. The runner owns the loop over trials; an engine owns one trial at a time."""

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        """Answer every request of `trial` under its condition's kernels.

        Raises OutOfMemory, naming the batch size, or MeasurementError where nothing came back;
        a request that failed alone is a Completion with `error`. KeyboardInterrupt leaves the
        engine fit for the next trial.
        """
        ...

    def proof(self, kernels: str) -> KernelsProof:
        """What was overridden for a kernels setting and seen to run, up to now."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


@runtime_checkable
class ChecksEndpoints(Protocol):
    """An engine that asks servers, and finds out about them before it trusts them."""

    def endpoint_checks(self) -> tuple[EndpointCheck, ...]:
        """What was found out up to now; more may be known after the last trial."""
        ...
