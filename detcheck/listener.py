"""The calls that a run makes as it goes on; the command line shows its progress by them."""

from __future__ import annotations

from pathlib import Path

from detcheck.engines.base import InFlight
from detcheck.evidence import EndpointCheck, ModelIdentity
from detcheck.rundir import ConditionRecord


class Listener:
    """Is called as a run goes on; every method does nothing unless overridden."""

    def waiting_for(self, phrase: str) -> None:
        """The checks of a server are waiting; `phrase` names the thing that they wait for."""

    def endpoints_checked(self, checks: tuple[EndpointCheck, ...]) -> None:
        """The servers were checked; called before the directory exists."""

    def model_identified(self, identity: ModelIdentity) -> None:
        """The model is loaded, or the servers are reached; called before the directory exists."""

    def run_started(self, path: Path, conditions: list[ConditionRecord]) -> None:
        """The directory exists and the model is loaded."""

    def condition_started(self, index: int, record: ConditionRecord) -> None:
        """A condition begins, or goes on after a resume."""

    def tokens_generated(self, index: int, tokens: int) -> None:
        """Tokens that the trial in flight has generated so far."""

    def requests_in_flight(self, index: int, requests: InFlight) -> None:
        """How many requests of the trial are in flight, done and failed, if a server is asked."""

    def trial_finished(self, index: int, record: ConditionRecord, distinct: int) -> None:
        """A trial is committed; `distinct` counts variants of this prompt, kernels and seed."""

    def condition_finished(self, index: int, record: ConditionRecord) -> None:
        """A condition is done or has failed."""

    def interrupted(self) -> None:
        """Ctrl-C was pressed; committed trials are kept."""
