"""One endpoint over HTTP: bounded replies, bounded waits, and every fault as a kind of failure."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from detcheck import __version__
from detcheck.engines.openai.body import Body
from detcheck.engines.openai.choices import new_reply
from detcheck.engines.openai.complaints import parse_json, server_words
from detcheck.engines.openai.compression import Decompressor
from detcheck.engines.openai.connection import Connection, redact
from detcheck.engines.openai.failures import (
    MALFORMED,
    TIMEOUT,
    Failure,
    failed_status,
    failed_transport,
)
from detcheck.engines.openai.reply import Reply
from detcheck.text import one_line

LONGEST_ERROR = 1 << 16
LONGEST_METRICS = 8 << 20
LONGEST_LIST = 8 << 20
_INSTANCE = re.compile(
    r"(?i)instance|served-by|backend|upstream|\bpod|hostname|\bnode|replica|container|machine"
    r"|server-id|worker"
)
"""Names of headers in which a server or its balancer says which instance answered."""


@dataclass(frozen=True, slots=True)
class Page:
    """A small reply, read whole."""

    status: int
    text: str
    location: str | None

    @property
    def said(self) -> str:
        """The server's own words about an error; empty if there are none."""
        try:
            data: dict[str, Any] = parse_json(self.text.encode("utf-8", "replace"))
        except Failure:
            return ""
        return server_words(data)


@dataclass(frozen=True, slots=True)
class Address:
    """The far end of a connection."""

    ip: str
    port: int
    is_here: bool
    """True if it is an address of this machine."""


async def address_of(url: str, limit_s: float) -> Address | None:
    """Where a connection to `url` leads; None if none comes about within `limit_s`."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(limit_s):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except (OSError, TimeoutError):
        return None
    peer, own = (writer.get_extra_info(name) for name in ("peername", "sockname"))
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return Address(str(peer[0]), int(peer[1]), is_here=peer[0] == own[0])


class Client:
    """Asks one endpoint. Made and used within one event loop; `close` it there."""

    def __init__(self, base_url: str, connection: Connection):
        self.base_url = base_url.rstrip("/")
        self.secrets = connection.secrets()
        self._connection = connection
        headers = {
            "User-Agent": f"detcheck/{__version__}",
            "Accept-Encoding": "identity",
            **connection.resolve(),
        }
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=0, ttl_dns_cache=300),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connection.connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def get(self, path: str, longest: int = LONGEST_LIST) -> Page:
        """A page of the API, such as `/models`; raises Failure if none comes back."""
        return await self._get(self.base_url + path, longest)

    async def metrics(self) -> str | None:
        """The server's metrics in Prometheus' text format; None if it has none."""
        parts = urlsplit(self.base_url)
        root = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('/v1')}"
        try:
            page = await self._get(f"{root}/metrics", LONGEST_METRICS)
        except Failure:
            return None
        return page.text if page.status == 200 else None

    async def address(self) -> Address | None:
        """Where a connection to the server leads; None if none comes about."""
        return await address_of(self.base_url, self._connection.connect_s)

    async def open_connections(self, number: int) -> None:
        """Have so many connections ready, each proved by a small request; faults show later."""
        await asyncio.gather(*(self._touch() for _ in range(number)))

    async def ask(
        self,
        path: str,
        body: bytes,
        max_new_tokens: int,
        on_tokens: Callable[[], None],
        choices: int = 1,
    ) -> Reply:
        """Send one request and read its reply to the end. `on_tokens` is called as tokens come.

        The reply holds `choices` completions of at most `max_new_tokens` each. Raises Failure, and
        never waits longer than the connection's limits.
        """
        reply = new_reply(max_new_tokens, choices, self.secrets)
        with _as_failures():
            async with asyncio.timeout(self._connection.first_token_s) as patience:
                async with self._session.post(
                    self.base_url + path,
                    data=body,
                    headers={"Content-Type": "application/json"},
                    allow_redirects=False,
                ) as response:
                    await self._refuse(response)
                    reply.instance = _instance(response, self.secrets)
                    await self._read(response, reply, patience, on_tokens)
        return reply

    async def _read(
        self,
        response: aiohttp.ClientResponse,
        reply: Reply,
        patience: asyncio.Timeout,
        on_tokens: Callable[[], None],
    ) -> None:
        body = Body(reply, self.secrets)
        plain = _decompressor(response)
        loop = asyncio.get_running_loop()
        async for data in response.content.iter_any():
            if sum([not reply.done and body.feed(piece) for piece in plain.feed(data)]):
                on_tokens()
                patience.reschedule(loop.time() + self._connection.between_tokens_s)
            if reply.done:  # what follows is read, so that the connection can be used again
                await _drain(response)
                return
        if body.feed(plain.close()) | body.close():
            on_tokens()

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        """Raise Failure if the status shows that no answer follows."""
        if response.status != 200:
            page = await _page(response, LONGEST_ERROR, self.secrets)
            raise failed_status(
                page.status,
                page.text,
                page.said,
                response.headers.get("Retry-After"),
                page.location,
            )

    async def _get(self, url: str, longest: int) -> Page:
        with _as_failures():
            async with (
                asyncio.timeout(self._connection.connect_s * 2),
                self._session.get(url, allow_redirects=False) as response,
            ):
                return await _page(response, longest, self.secrets)

    async def _touch(self) -> None:
        try:
            await self._get(f"{self.base_url}/models", LONGEST_LIST)
        except Failure:
            return


def _instance(
    response: aiohttp.ClientResponse, secrets: tuple[str, ...]
) -> frozenset[tuple[str, str]]:
    """(name, value) of the headers that name a machine or process."""
    return frozenset(
        (name.lower(), one_line(redact(value, secrets))[:80])
        for name, value in response.headers.items()
        if _INSTANCE.search(name)
    )


@contextmanager
def _as_failures() -> Iterator[None]:
    """Turn every exception of the HTTP client into a Failure that quotes nothing of the request."""
    try:
        yield
    except Failure:
        raise
    except TimeoutError as error:
        connecting = isinstance(error, aiohttp.ServerTimeoutError)
        said = "no connection in time" if connecting else "no token in time"
        raise Failure(TIMEOUT, said) from None
    except (aiohttp.ClientConnectorError, ssl.SSLError) as error:
        raise failed_transport(error) from error  # the cause tells TLS from a closed port
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise failed_transport(error) from None


async def _page(response: aiohttp.ClientResponse, longest: int, secrets: tuple[str, ...]) -> Page:
    data = await _read_all(response, longest)
    text = redact(data.decode("utf-8", "replace"), secrets)
    return Page(response.status, text, response.headers.get("Location"))


async def _read_all(response: aiohttp.ClientResponse, longest: int) -> bytes:
    plain = _decompressor(response)
    pieces: list[bytes] = []
    size = 0
    async for data in response.content.iter_any():
        for piece in plain.feed(data):
            size += len(piece)
            if size > longest:
                said = "the reply is longer than the answer to the request can be"
                raise Failure(MALFORMED, said)
            pieces.append(piece)
    return b"".join((*pieces, plain.close()))


def _decompressor(response: aiohttp.ClientResponse) -> Decompressor:
    return Decompressor(response.headers.get("Content-Encoding", ""))


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the rest of a stream after its last event: normally only the end of the stream."""
    left = LONGEST_ERROR
    try:
        async with asyncio.timeout(1.0):
            async for piece in response.content.iter_any():
                left -= len(piece)
                if left < 0:
                    break
    except (TimeoutError, aiohttp.ClientError, OSError):
        return
