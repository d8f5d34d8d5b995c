"""The protocol of every engine: it answers the requests of a trial and attests how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from detcheck.completion import Completion
from detcheck.evidence import EndpointCheck, KernelsProof, LoadEvidence, ModelIdentity
from detcheck.traffic import Trial


@dataclass(frozen=True, slots=True)
class InFlight:
    """How many requests of the trial are in flight, done and failed."""

    in_flight: int
    done: int
    failed: int


OnWait = Callable[[str], None]
"""Called with a phrase that names the thing waited for, and the longest time."""


class OnTokens(Protocol):
    """Called now and then during a trial with the tokens generated so far."""

    def __call__(self, tokens: int, requests: InFlight | None = None, /) -> None:
        """`requests` is given by engines that send requests to a server."""
        ...


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The answers of one trial and the evidence of its load."""

    completions: tuple[tuple[int, Completion], ...]
    """(position of the request in the trial, its completion), probes only."""
    generated_tokens: int
    """Tokens generated, fillers included."""
    elapsed_s: float
    """Wall time from the first submission to the last answer."""
    load: LoadEvidence | None = None
    """Evidence of its batches, if completions hold none of their own."""
    filler_failures: Mapping[str, int] = field(default_factory=dict)
    """Requests that only made load and failed, by kind."""
    retries: int = 0
    """Requests that were sent again because nothing had been generated."""
    more_choices: tuple[tuple[tuple[int, Completion], ...], ...] = ()
    """The same for each further choice of the requests, if they ask for several."""

    @property
    def by_choice(self) -> tuple[tuple[tuple[int, Completion], ...], ...]:
        """The completions of every choice, the first choice first."""
        return self.completions, *self.more_choices


class Engine(Protocol):
    """Generates. The runner owns the loop over trials; an engine owns one trial at a time."""

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        """Answer every request of `trial` under its condition's kernels.

        Raises OutOfMemory, which names the batch size, or MeasurementError if no answer came
        back. A single failed request is a Completion with `error`. After a KeyboardInterrupt
        the engine can run the next trial.
        """
        ...

    def proof(self, kernels: str) -> KernelsProof:
        """The overrides of a kernels setting and their calls, up to now."""
        ...

    def close(self) -> None:
        """Free the engine's model or connections."""
        ...


@runtime_checkable
class ChecksEndpoints(Protocol):
    """An engine that asks servers and checks them before the experiment."""

    def endpoint_checks(self) -> tuple[EndpointCheck, ...]:
        """The checks up to now; there may be more after the last trial."""
        ...


@runtime_checkable
class AsksAgain(Protocol):
    """An engine that checks its servers after the last trial as well."""

    def ask_again(self, *, at_the_end: bool = False) -> None:
        """Ask the servers the questions of the checks before the experiment again."""
        ...


@runtime_checkable
class IdentifiesModel(Protocol):
    """An engine that knows which model answers."""

    def model_identity(self) -> ModelIdentity:
        """Name, revision and digests of the model, as far as they are known."""
        ...
