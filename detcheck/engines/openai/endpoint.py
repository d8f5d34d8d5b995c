"""One endpoint as the engine uses it: asked in its dialect, retried if nothing was generated."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from detcheck.engines.openai.client import Client
from detcheck.engines.openai.connection import Connection
from detcheck.engines.openai.evidence import MetricsWatch
from detcheck.engines.openai.failures import TIMEOUT, Failure
from detcheck.engines.openai.later_answers import LaterAnswers
from detcheck.engines.openai.reply import Reply
from detcheck.engines.openai.request import Dialect, Question
from detcheck.engines.openai.tally import ReplyTally
from detcheck.evidence import EndpointCheck

MOST_RETRIES = 3
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
"""A server's Retry-After is honoured up to this."""


def _ignore(*_: object) -> None:
    """A callback that does nothing."""


class Endpoint:
    """One server: its client, its dialect, its checks and its replies' tally."""

    def __init__(
        self,
        base_url: str,
        connection: Connection,
        placement: str,
        on_wait: Callable[[str], None] = _ignore,
    ):
        self.client = Client(base_url, connection)
        self.connection = connection
        self.placement = placement
        self.on_wait = on_wait
        """Called with a phrase before every wait of the checks."""
        self.watch = MetricsWatch(self.client)
        self.dialect = Dialect("", chat=True)
        self.checks: list[EndpointCheck] = []
        self.tally = ReplyTally()
        self.later = LaterAnswers()
        """The answers to the prompts of the checks since the experiment began."""
        self.retries = 0
        self.has_answered = False
        """Whether any request has been answered to its end."""
        self.failed_probes: Counter[str] = Counter()
        """Short requests of the checks that failed, by kind."""

    @property
    def name(self) -> str:
        """Its base URL."""
        return self.client.base_url

    async def ask(
        self,
        question: Question,
        on_tokens: Callable[[], None] = _ignore,
        *,
        limit_s: float | None = None,
    ) -> Reply:
        """Return the reply to one request, ended or not; raise Failure if there is none.

        The request is sent again, after a pause and at most `MOST_RETRIES` times, only if nothing
        can have been generated; `retries` counts that. `limit_s` bounds all of it, and is the
        connection's `total_s` by default.
        """
        body = self.dialect.body(question)
        total_s = self.connection.total_s if limit_s is None else limit_s
        try:
            async with asyncio.timeout(total_s) as patience:
                return await self._persist(body, question, on_tokens, patience)
        except TimeoutError:
            raise Failure(TIMEOUT, f"the reply did not end within {total_s:g} s") from None

    async def _persist(
        self,
        body: bytes,
        question: Question,
        on_tokens: Callable[[], None],
        patience: asyncio.Timeout,
    ) -> Reply:
        loop = asyncio.get_running_loop()
        until = patience.when() or loop.time()
        pause = FIRST_PAUSE_S
        for attempt in range(MOST_RETRIES + 1):
            try:
                return await self.client.ask(
                    self.dialect.path, body, question.max_new_tokens, on_tokens, question.choices
                )
            except Failure as failure:
                if not failure.nothing_generated or attempt == MOST_RETRIES:
                    raise
                wanted = pause if failure.retry_after_s is None else failure.retry_after_s
                wait = min(wanted, LONGEST_PAUSE_S)
                if loop.time() + wait >= until:  # report this failure, not the time-out after it
                    raise
            self.retries += 1
            await asyncio.sleep(wait)
            pause *= 2
        raise AssertionError("unreachable")
