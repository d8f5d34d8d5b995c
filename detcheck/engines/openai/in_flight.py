"""The requests of a trial in flight, counted and reported."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from detcheck.engines.base import InFlight, OnTokens

REPORT_S = 0.2


@dataclass(slots=True)
class TrialProgress:
    """How many requests of a trial are in flight, done and failed."""

    total: int
    tokens: int = 0
    done: int = 0
    failed: int = 0

    def report(self, on_tokens: OnTokens | None) -> None:
        """Call the listener, if there is one."""
        if on_tokens is not None:
            ended = self.done + self.failed
            on_tokens(self.tokens, InFlight(self.total - ended, self.done, self.failed))


async def keep_reporting(progress: TrialProgress, on_tokens: OnTokens | None) -> None:
    """Call the listener every `REPORT_S` seconds, until cancelled."""
    while True:
        progress.report(on_tokens)
        await asyncio.sleep(REPORT_S)
