"""Finding an endpoint's model, or saying in one sentence why it cannot be asked."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from detcheck.engines.openai.client import Client
from detcheck.engines.openai.connection import Connection
from detcheck.engines.openai.failures import MALFORMED, RESET, TIMEOUT, Failure
from detcheck.engines.openai.reply import parse_json
from detcheck.errors import DetcheckError, MeasurementError, ModelError, UsageError
from detcheck.text import one_line, quoted

MOST_NAMED = 8
"""Served models that a sentence lists."""


async def find_model(
    client: Client, connection: Connection, wanted: str | None
) -> tuple[str, int | None]:
    """(served name, context in tokens or None) of the model to ask.

    `wanted` None takes the only one that is served. Raises UsageError or MeasurementError where
    there is no such server or model.
    """
    try:
        page = await client.get("/models")
    except Failure as failure:
        raise await unreachable(client, failure) from None
    if page.status != 200:
        refused = refusal(client, connection, page.status, page.location)
        if refused is not None:
            raise refused
    served = _served(page.text) if page.status == 200 else None
    if served is None:
        if wanted is None:
            raise _not_the_api(client, f"{page.status} at /models" if page.status != 200 else "")
        return wanted, None  # some servers list nothing, and answer all the same
    return _choose(client, served, wanted)


def refusal(
    client: Client, connection: Connection, status: int, location: str | None
) -> DetcheckError | None:
    """Why a status is an answer to everything: a key, or a redirect; None for others."""
    if status in (401, 403):
        if connection.api_key_env is None:
            return UsageError(
                f"{client.base_url} asks for an API key ({status}): put it into an environment "
                "variable and give its name by --api-key-env."
            )
        return UsageError(
            f"{client.base_url} refuses the key in {connection.api_key_env} ({status}): check it."
        )
    if location is not None:
        return UsageError(
            f"{client.base_url} redirects to {_host(location)}, which is not followed and gets no "
            "key: give the URL that answers by --endpoint."
        )
    return None


async def unreachable(client: Client, failure: Failure) -> DetcheckError:
    """Why nothing came back from a server that was to list its models."""
    url = client.base_url
    secure = urlsplit(url).scheme == "https"
    cause = failure.__cause__
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        return UsageError(
            f"The certificate of {url} cannot be verified: use the name it is issued for, or let "
            "SSL_CERT_FILE name its authority."
        )
    if isinstance(cause, aiohttp.ClientSSLError | ssl.SSLError) or (
        secure and failure.kind in (RESET, MALFORMED)
    ):
        return UsageError(f"{url} does not speak HTTPS: give it as http://, if you trust the net.")
    if not secure and failure.kind in (RESET, MALFORMED) and await _speaks_tls(url):
        return UsageError(f"{url} speaks HTTPS: give it as https://.")
    if failure.kind == MALFORMED:
        return _not_the_api(client, failure.phrase)
    if failure.kind == TIMEOUT:
        return MeasurementError(f"{url} does not answer in time: is the server up?")
    return MeasurementError(
        f"There is no server at {url} ({failure.phrase}): start it, or check the URL."
    )


def not_the_api(client: Client, failure: Failure, path: str) -> UsageError:
    """A server that lists models perhaps, and takes no requests at `path`."""
    return _not_the_api(client, f"{failure.phrase} at {path}")


async def _speaks_tls(url: str) -> bool:
    """Whether a TLS handshake gets through; nothing is sent, so nothing needs verifying."""
    parts = urlsplit(url)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(5):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, ssl=context)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            return True
    return False


def _served(text: str) -> list[dict[str, Any]] | None:
    """The list of served models; None where it is none."""
    try:
        data = parse_json(text.encode("utf-8", "replace")).get("data")
    except Failure:
        return None
    if not isinstance(data, list):
        return None
    return [one for one in data if isinstance(one, dict) and isinstance(one.get("id"), str)]


def _choose(
    client: Client, served: list[dict[str, Any]], wanted: str | None
) -> tuple[str, int | None]:
    names = [one["id"] for one in served]
    listed = ", ".join(one_line(name)[:80] for name in names[:MOST_NAMED])
    listed += f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    if wanted is None:
        if len(names) != 1:
            raise UsageError(
                f"{client.base_url} serves {listed or 'no model'}: name the one to ask as MODEL."
            )
        wanted = names[0]
    if not served:  # `transformers serve` lists what the hub's cache holds, not what it loaded
        return wanted, None
    for one in served:
        if one["id"] == wanted:
            return wanted, _context(one)
    raise ModelError(
        f"{client.base_url} does not serve {quoted(wanted, 80)}: it serves {listed or 'no model'}."
    )


def _context(entry: dict[str, Any]) -> int | None:
    """Tokens of prompt and answer together that the server allows; None where it does not tell."""
    meta = entry.get("meta")
    candidates = [entry.get("max_model_len"), entry.get("context_length")]
    if isinstance(meta, dict):
        candidates.append(meta.get("n_ctx"))
    return next((one for one in candidates if type(one) is int and one > 0), None)


def _not_the_api(client: Client, detail: str) -> UsageError:
    said = f" ({detail})" if detail else ""
    return UsageError(
        f"{client.base_url} answers, but not as an OpenAI-compatible API{said}: give the base URL "
        "that ends in /v1, and the served name as MODEL."
    )


def _host(location: str) -> str:
    try:
        host = urlsplit(location).netloc.rpartition("@")[2]
    except ValueError:
        host = ""
    return one_line(host)[:80] or "another path"
