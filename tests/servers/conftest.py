"""A plain HTTP client, to see the misbehaving server's replies as they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from .faults import Faults
from .running import Served, serve

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Answer:
    """A reply, and the exception that ended it early, if any."""

    status: int
    headers: dict[str, str]
    body: bytes
    error: Exception | None = None

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The text of a whole reply."""
        choice = self.json()["choices"][0]
        return choice["text"] if "text" in choice else choice["message"]["content"]

    @property
    def events(self) -> list[Any]:
        """The JSON of each event of a stream, without [DONE]."""
        lines = self.body.decode().split("\n\n")
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@dataclass(frozen=True)
class Client:
    """Sends requests to one server."""

    served: Served

    def ask(self, count: int = 1, **fields: Any) -> list[Answer]:
        """POST `count` equal requests at once; `path` and `headers` are of the request."""
        return asyncio.run(_all(self.served, count, fields))

    def one(self, **fields: Any) -> Answer:
        """The only answer."""
        return self.ask(**fields)[0]

    def get(self, path: str) -> str:
        """A GET below the root."""
        return asyncio.run(_get(self.served.root + path))

    def metric(self, name: str) -> float:
        """The value of the line at /metrics that starts with `name`."""
        lines = self.get("/metrics").splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name))


async def _all(served: Served, count: int, fields: dict[str, Any]) -> list[Answer]:
    timeout = aiohttp.ClientTimeout(total=fields.pop("timeout", TIMEOUT_S))
    path, headers = fields.pop("path", "/completions"), fields.pop("headers", {})
    said = {"prompt": "Hello"} if path == "/completions" else {"messages": [CHAT]}
    data = {"model": "tiny", "temperature": 0, "max_tokens": 12, **said, **fields}
    async with aiohttp.ClientSession(timeout=timeout, max_field_size=2**13) as session:
        requests: list[Awaitable[Answer]] = [
            _post(session, served.url + path, data, headers) for _ in range(count)
        ]
        return list(await asyncio.gather(*requests))


CHAT = {"role": "user", "content": "Hello"}


async def _post(
    session: aiohttp.ClientSession, url: str, data: dict[str, Any], headers: dict[str, str]
) -> Answer:
    body = bytearray()
    status, got = 0, {}
    try:
        async with session.post(url, json=data, headers=headers, allow_redirects=False) as reply:
            status, got = reply.status, dict(reply.headers)
            async for piece in reply.content.iter_any():
                body += piece
                if len(body) > 2**22:
                    raise OverflowError("too much")
    except (aiohttp.ClientError, TimeoutError, OverflowError, ConnectionError) as error:
        return Answer(status, got, bytes(body), error)
    return Answer(status, got, bytes(body))


async def _get(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        return await reply.text()


@pytest.fixture
def client():
    """A function that takes faults, starts a server with them, and returns a client of it."""
    from contextlib import ExitStack

    with ExitStack() as held:

        def start(**faults: Any) -> Client:
            return Client(held.enter_context(serve(Faults(**faults))))

        make: Callable[..., Client] = start
        yield make
