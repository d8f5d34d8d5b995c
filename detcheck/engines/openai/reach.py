"""Find the model that an endpoint serves, or say in one sentence why it cannot be asked."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from detcheck.engines.openai.client import Client
from detcheck.engines.openai.complaints import parse_json
from detcheck.engines.openai.connection import Connection, redact
from detcheck.engines.openai.failures import (
    MALFORMED,
    RESET,
    TIMEOUT,
    TOO_MANY_REQUESTS,
    Compressed,
    Failure,
)
from detcheck.errors import DetcheckError, MeasurementError, ModelError, UsageError
from detcheck.text import one_line, quoted

MOST_NAMED = 8
"""Served models that a message lists."""
NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")
"""OpenSSL's words for an answer that is not TLS at all; its other words are about TLS."""


async def find_model(
    client: Client, connection: Connection, wanted: str | None
) -> tuple[str, int | None]:
    """(served name, context in tokens or None) of the model to ask.

    If `wanted` is None, the server must serve exactly one. Raises UsageError or MeasurementError
    if there is no such server or model.
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
        if wanted is None and (page.status == TOO_MANY_REQUESTS or page.status >= 500):
            said = f": {page.said}" if page.said else ""
            raise MeasurementError(
                f"{client.base_url} does not list its models now ({page.status}{said}): wait until "
                "it is ready, or name the one to ask by `model`."
            )
        if wanted is None:
            raise _not_the_api(client, f"{page.status} at /models" if page.status != 200 else "")
        return wanted, None  # some servers list nothing, and answer all the same
    return _choose(client, served, wanted)


def refusal(
    client: Client, connection: Connection, status: int, location: str | None
) -> DetcheckError | None:
    """The error for a status that answers every request (key refused, redirect); else None."""
    if status in (401, 403):
        if connection.api_key_env is None:
            return UsageError(
                f"{client.base_url} asks for an API key ({status}): put it into an environment "
                "variable and give its name by `api_key_env`."
            )
        return UsageError(
            f"{client.base_url} refuses the key in {connection.api_key_env} ({status}): check it."
        )
    if location is not None:
        return UsageError(
            f"{client.base_url} redirects to {redact(_host(location), client.secrets)}, which is "
            "not followed and gets no key: give the URL that answers in `endpoints`."
        )
    return None


async def unreachable(client: Client, failure: Failure) -> DetcheckError:
    """The error for a server that did not answer when it was asked for its models."""
    url = client.base_url
    secure = urlsplit(url).scheme == "https"
    cause = failure.__cause__
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        return UsageError(
            f"The certificate of {url} cannot be verified{_why_not_verified(cause)}: use the name "
            "it is issued for, or let SSL_CERT_FILE name its authority."
        )
    if isinstance(cause, aiohttp.ClientSSLError | ssl.SSLError):
        return _no_tls(url, cause)
    if not secure and failure.kind in (RESET, MALFORMED) and await _speaks_tls(url):
        return UsageError(f"{url} speaks HTTPS: give it as https://.")
    if isinstance(failure, Compressed):
        return _compressed(client, failure)
    if failure.kind == MALFORMED:
        return _not_the_api(client, failure.phrase)
    said = {
        RESET: f"{url} cut the connection without an answer: look at the server's log.",
        TIMEOUT: f"{url} does not answer in time: is the server up?",
    }
    absent = f"There is no server at {url} ({failure.phrase}): start it, or check the URL."
    return MeasurementError(said.get(failure.kind, absent))


def not_the_api(client: Client, failure: Failure, path: str) -> UsageError:
    """The error for a server that takes no requests at `path`, even if it lists models."""
    if isinstance(failure, Compressed):
        return _compressed(client, failure)
    instead = ""
    if failure.status is not None:  # there is no such path
        instead = (
            "; `chat_template=False` asks /completions"
            if path == "/chat/completions"
            else "; without `chat_template=False` /chat/completions is asked"
        )
    return _not_the_api(client, f"{failure.phrase} at {path}{instead}")


def _compressed(client: Client, failure: Compressed) -> UsageError:
    return UsageError(
        f"{client.base_url} compresses its replies (content-encoding {failure.encoding}), though "
        "it is asked not to: let the server or its proxy send them as they are, or in gzip."
    )


def _no_tls(url: str, cause: BaseException) -> DetcheckError:
    """Plain HTTP is advised only if the server spoke no TLS, not if TLS went wrong."""
    error = getattr(cause, "os_error", cause)
    reason = str(getattr(error, "reason", None) or type(error).__name__)
    if reason in NOT_TLS:
        return UsageError(f"{url} does not speak HTTPS: give it as http://, if you trust the net.")
    said = one_line(reason.lower().replace("_", " "))[:80]
    return UsageError(
        f"No TLS connection to {url} comes about ({said}): check which protocols and client "
        "certificates it asks for."
    )


def _why_not_verified(cause: aiohttp.ClientConnectorCertificateError) -> str:
    said = getattr(cause.certificate_error, "verify_message", "")
    return f" ({one_line(str(said))[:120].rstrip('.')})" if said else ""


async def _speaks_tls(url: str) -> bool:
    """Whether a TLS handshake succeeds; nothing is sent, so no certificate needs verifying."""
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
    """The list of served models; None if the text is not such a list."""
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
                f"{client.base_url} serves {listed or 'no model'}: name the one to ask by `model`."
            )
        wanted = names[0]
    if (
        not served
    ):  # `transformers serve` lists the models in the hub's cache, not those it has loaded
        return wanted, None
    for one in served:
        if one["id"] == wanted:
            return wanted, _context(one)
    raise ModelError(
        f"{client.base_url} does not serve {quoted(wanted, 80)}: it serves {listed or 'no model'}."
    )


def _context(entry: dict[str, Any]) -> int | None:
    """Tokens of prompt and answer together that the server allows; None if it does not say."""
    meta = entry.get("meta")
    candidates = [entry.get("max_model_len"), entry.get("context_length")]
    if isinstance(meta, dict):
        candidates.append(meta.get("n_ctx"))
    return next((one for one in candidates if type(one) is int and one > 0), None)


def _not_the_api(client: Client, detail: str) -> UsageError:
    said = f" ({detail})" if detail else ""
    return UsageError(
        f"{client.base_url} answers, but not as an OpenAI-compatible API{said}: give the base URL "
        "that ends in /v1, and the served name as `model`."
    )


def _host(location: str) -> str:
    try:
        parts = urlsplit(location)
    except ValueError:
        return "another path"
    host = parts.netloc.rpartition("@")[2]
    if not host:
        return "another path"
    return one_line(f"{parts.scheme}://{host}" if parts.scheme else host)[:80]
