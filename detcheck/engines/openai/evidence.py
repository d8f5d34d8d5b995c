"""Evidence that a server computed requests together: its own counters, else its streams.

Streams are the weaker witness. That tokens of several replies came interleaved shows that the
server worked on them at the same time, not that it did so in one forward pass: several workers of
one request each would look the same.
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
"""Share of the time in which so many streams must have run together."""


class Ticks:
    """Counts turns of the event loop: what came in within one cannot be told apart in time."""

    def __init__(self) -> None:
        self._tick = 0
        self._due = False

    def now(self) -> int:
        """Number of the turn that is going on."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._next)
        return self._tick

    def _next(self) -> None:
        self._tick += 1
        self._due = False


@dataclass(slots=True)
class Stream:
    """When the tokens of one reply came: turns of the event loop, and seconds."""

    arrivals: int = 0
    """Turns in which tokens came."""
    second: tuple[int, float] = (0, 0.0)
    last: tuple[int, float] = (-1, 0.0)

    def saw_tokens(self, tick: int, seconds: float) -> None:
        """Tokens came now."""
        if tick == self.last[0]:
            return
        self.arrivals += 1
        self.last = (tick, seconds)
        if self.arrivals == 2:
            self.second = self.last


def overlapping(streams: Sequence[Stream]) -> LoadEvidence | None:
    """How many replies were generated at the same time, by when their tokens came.

    A reply counts from its second token on, so that a server which greets everybody and then works
    requests off one by one comes out as 1; and a number of streams counts where it lasted for
    `SUSTAINED` of the time, so that a late packet does not. None where replies came in one piece.
    """
    told = [stream for stream in streams if stream.arrivals > 2]
    if not told or 2 * len(told) < len(streams):
        return None
    # Ends before beginnings within a turn of the event loop: a turn hides their order.
    changes = sorted(
        [(stream.second[0], 1, stream.second[1]) for stream in told]
        + [(stream.last[0], -1, stream.last[1]) for stream in told]
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
    """What a trial of these `streams` shows, by counters where the streams do not contradict them.

    Streams are the weaker witness of how large a batch was, not of whether there was one: replies
    that came strictly one after the other were in no batch, whatever a gauge says. Of who else was
    there while one request was asked for, streams say nothing, and iterations do.
    """
    seen = overlapping(streams)
    if counted is None:
        return seen
    if len(streams) == 1 and (counted.rows_mean or 0.0) > 1:
        return counted
    one_by_one = seen is not None and seen.rows_max == 1 < counted.rows_max
    return seen if one_by_one else counted


class MetricsWatch:
    """Reads a server's counters before, during and after a trial; silent where it has none."""

    def __init__(self, client: Client):
        self._client = client
        self.available = False
        """Whether its metrics are of a server whose counters are known."""
        self.started_at: float | None = None
        """When its process started, in seconds since 1970, if its metrics say so."""
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
        if not self.available:
            return
        self._before, self._samples = await self.read(), []
        self._poll = asyncio.create_task(self._keep_polling())

    async def stop(self, requests: int) -> LoadEvidence | None:
        """What the counters say of the `requests` answered since `start`."""
        if self._poll is None:
            return None
        await self.abandon()
        after = await self.read()
        return metrics.load_evidence(self._before, self._samples, after, requests)

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
