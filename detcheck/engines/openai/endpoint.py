"""One endpoint as an engine uses it: asked in its dialect, retried if nothing was generated."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from detcheck.engines.openai.client import Client
from detcheck.engines.openai.connection import Connection
from detcheck.engines.openai.evidence import MetricsWatch
from detcheck.engines.openai.failures import TIMEOUT, Failure
from detcheck.engines.openai.reply import Reply
from detcheck.engines.openai.request import Dialect
from detcheck.evidence import EndpointCheck

MOST_RETRIES = 3
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
"""A server's Retry-After is honoured up to this."""
MOST_REMEMBERED = 4096
MOST_FINGERPRINTS = 16


@dataclass(frozen=True, slots=True)
class Question:
    """One request to a model."""

    prompt: str
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


def _ignore() -> None:
    """Nobody waits for the tokens."""


@dataclass(slots=True)
class Seen:
    """What a server said of itself over a whole run, in bounded memory."""

    system_fingerprints: set[str] = field(default_factory=set)
    without_fingerprint: int = 0
    replies: int = 0
    repeated_ids: int = 0
    """Replies whose id an earlier one had."""
    _ids: set[str] = field(default_factory=set)

    def add(self, reply: Reply) -> None:
        """Take note of a finished reply."""
        self.replies += 1
        if reply.system_fingerprint is None:
            self.without_fingerprint += 1
        elif len(self.system_fingerprints) < MOST_FINGERPRINTS:
            self.system_fingerprints.add(reply.system_fingerprint)
        if reply.reply_id is None:
            return
        if len(self._ids) >= MOST_REMEMBERED:
            self._ids.clear()
        self.repeated_ids += reply.reply_id in self._ids
        self._ids.add(reply.reply_id)


class Endpoint:
    """A server, and everything that is known of it."""

    def __init__(self, base_url: str, connection: Connection, placement: str):
        self.client = Client(base_url, connection)
        self.connection = connection
        self.placement = placement
        self.watch = MetricsWatch(self.client)
        self.dialect = Dialect("", chat=True)
        self.checks: list[EndpointCheck] = []
        self.seen = Seen()
        self.retries = 0
        self.failed_probes: Counter[str] = Counter()
        """Short requests of the checks that failed, by kind."""

    @property
    def name(self) -> str:
        """For a person: its base URL."""
        return self.client.base_url

    async def ask(self, question: Question, on_tokens: Callable[[], None] = _ignore) -> Reply:
        """The reply to one request, ended or not; raises Failure where there is none.

        Sent again, after a pause and at most `MOST_RETRIES` times, only where nothing can have
        been generated; `retries` counts them.
        """
        body = self.dialect.body(
            question.prompt, question.max_new_tokens, question.temperature, question.seed
        )
        try:
            async with asyncio.timeout(self.connection.total_s) as patience:
                return await self._persist(body, question.max_new_tokens, on_tokens, patience)
        except TimeoutError:
            raise Failure(TIMEOUT, "the reply did not end in time") from None

    async def _persist(
        self,
        body: bytes,
        max_new_tokens: int,
        on_tokens: Callable[[], None],
        patience: asyncio.Timeout,
    ) -> Reply:
        loop = asyncio.get_running_loop()
        until = patience.when() or loop.time()
        pause = FIRST_PAUSE_S
        for attempt in range(MOST_RETRIES + 1):
            try:
                return await self.client.ask(self.dialect.path, body, max_new_tokens, on_tokens)
            except Failure as failure:
                if not failure.nothing_generated or attempt == MOST_RETRIES:
                    raise
                wanted = pause if failure.retry_after_s is None else failure.retry_after_s
                wait = min(wanted, LONGEST_PAUSE_S)
                if loop.time() + wait >= until:  # it is this that failed, not the waiting for it
                    raise
            self.retries += 1
            await asyncio.sleep(wait)
            pause *= 2
        raise AssertionError("unreachable")
