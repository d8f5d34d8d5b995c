"""Evidence that a server computed requests together: its own counters, else its streams.

Streams are the weaker evidence. Interleaved tokens of several replies show that the server worked
on them at the same time, not that it did so in one forward pass: several workers of one request
each would look the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from detcheck.engines.openai import metrics
from detcheck.engines.openai.client import Client
from detcheck.evidence import STREAMED_TOKENS, LoadEvidence

POLL_S = 0.1
MOST_SAMPLES = 2048
"""Beyond this every other sample is dropped, and polling goes half as fast."""
SUSTAINED = 0.05
"""Share of the time for which so many streams must have run together."""


class Ticks:
    """Counts turns of the event loop: tokens that arrive within one turn have no order in time."""

    def __init__(self) -> None:
        self._tick = 0
        self._due = False

    def now(self) -> int:
        """Number of the current turn."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._next)
        return self._tick

    def _next(self) -> None:
        self._tick += 1
        self._due = False


@dataclass(slots=True)
class Stream:
    """Arrival times of one reply's tokens: turns of the event loop, and seconds."""

    arrivals: int = 0
    """Turns in which tokens arrived."""
    second: tuple[int, float] = (0, 0.0)
    last: tuple[int, float] = (-1, 0.0)

    def saw_tokens(self, tick: int, seconds: float) -> None:
        """Tokens have just arrived."""
        if tick == self.last[0]:
            return
        self.arrivals += 1
        self.last = (tick, seconds)
        if self.arrivals == 2:
            self.second = self.last


def overlapping(streams: Sequence[Stream]) -> LoadEvidence | None:
    """How many replies were generated at the same time, by the arrival times of their tokens.

    A reply counts from its second token on: a server that sends every first token at once, and
    then serves one request after the other, is measured as 1. A number of streams counts only if it
    lasted for `SUSTAINED` of the time, so that one late packet does not count. None if replies
    arrived in one piece.
    """
    spread = [stream for stream in streams if stream.arrivals > 2]
    if not spread or 2 * len(spread) < len(streams):
        return None
    # Within one turn of the event loop ends count before beginnings: their order is not known.
    changes = sorted(
        [(stream.second[0], 1, stream.second[1]) for stream in spread]
        + [(stream.last[0], -1, stream.last[1]) for stream in spread]
    )
    seconds_at: dict[int, float] = {}
    level, since = 0, changes[0][2]
    for _, change, now in changes:
        if level > 0:
            seconds_at[level] = seconds_at.get(level, 0.0) + max(0.0, now - since)
        level, since = level + change, now
    busy = sum(seconds_at.values())
    if busy <= 0:
        return None
    together, rows_max = 0.0, 1
    for number in sorted(seconds_at, reverse=True):
        together += seconds_at[number]
        if together >= SUSTAINED * busy:
            rows_max = number
            break
    mean = sum(number * seconds for number, seconds in seconds_at.items()) / busy
    return LoadEvidence(STREAMED_TOKENS, rows_max, round(mean, 3))


def agreed(counted: LoadEvidence | None, streams: Sequence[Stream]) -> LoadEvidence | None:
    """The evidence of a trial: the server's counters, unless the `streams` contradict them.

    Streams tell less about the size of a batch than counters, but they do tell whether there was
    one: replies that arrived strictly one after the other shared no batch, even if a gauge says so.
    Only counters of iterations show other clients' requests beside a single one.
    """
    seen = overlapping(streams)
    if counted is None:
        return seen
    if len(streams) == 1 and (counted.rows_mean or 0.0) > 1:
        return counted
    one_by_one = seen is not None and seen.rows_max == 1 < counted.rows_max
    return seen if one_by_one else counted


class MetricsWatch:
    """Reads a server's counters before, during and after a trial; does nothing if it has none."""

    def __init__(self, client: Client):
        self._client = client
        self.available = False
        """Whether its metrics are of a server whose counters are known."""
        self.started_at: float | None = None
        """When its process started, in seconds since 1970, if its metrics say so."""
        self.cached_tokens: int | None = None
        """Prompt tokens from the prefix cache between `start` and `stop`; None: not known."""
        self._model: str | None = None
        self._before = metrics.Counters()
        self._samples: list[metrics.Counters] = []
        self._poll: asyncio.Task[None] | None = None

    async def look(self, model: str) -> None:
        """Find out whether the server has counters, and read those of `model` from now on."""
        self._model = model
        self.available = (await self.read()).server is not None

    async def start(self) -> None:
        """Read the counters, and go on reading them now and then."""
        self.cached_tokens = None
        if not self.available:
            return
        self._before, self._samples = await self.read(), []
        self._poll = asyncio.create_task(self._keep_polling())

    async def stop(self, requests: int) -> LoadEvidence | None:
        """Evidence of the batches of the `requests` that were answered since `start`."""
        if self._poll is None:
            return None
        await self.abandon()
        after = await self.read()
        readings = self._before, self._samples, after, requests
        self.cached_tokens = metrics.cached_tokens(*readings)
        return metrics.load_evidence(*readings)

    async def abandon(self) -> None:
        """Stop reading."""
        if self._poll is not None:
            self._poll.cancel()
            # Gathered, so that a Ctrl-C that comes meanwhile is not taken for the poll's own end.
            await asyncio.gather(self._poll, return_exceptions=True)
            self._poll = None

    async def _keep_polling(self) -> None:
        pause = POLL_S / 4  # early, so that a short trial is seen at all
        while True:
            await asyncio.sleep(pause)
            self._samples.append(await self.read())
            pause = max(pause, POLL_S)
            if len(self._samples) >= MOST_SAMPLES:
                self._samples = self._samples[::2]
                pause *= 2

    async def read(self) -> metrics.Counters:
        """The counters now; all None if the server has none."""
        text = await self._client.metrics()
        if text is None:
            return metrics.Counters()
        self.started_at = metrics.process_start(text)
        return metrics.read(text, self._model)
