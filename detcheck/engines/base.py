"""What every engine is: something that answers the requests of a trial, and says how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from detcheck.completion import Completion
from detcheck.rundir import KernelsProof
from detcheck.traffic import Trial

OnTokens = Callable[[int], None]
"""Called now and then during a trial with the tokens generated so far."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What came of one trial."""

    completions: tuple[tuple[int, Completion], ...]
    """(position of the request in the trial, its completion), probes only."""
    generated_tokens: int
    """Tokens generated, fillers included."""
    elapsed_s: float
    """Wall time from the first submission to the last answer."""


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
