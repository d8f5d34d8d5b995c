"""Kinds of failed requests, and which of them may be sent again."""

from __future__ import annotations

import ssl
import time
from email.utils import parsedate_to_datetime

import aiohttp

REFUSED = "refused"
RESET = "reset"
TIMEOUT = "timeout"
HTTP_4XX = "http 4xx"
HTTP_429 = "http 429"
HTTP_5XX = "http 5xx"
TRUNCATED = "truncated"
MALFORMED = "malformed"
ABORTED = "aborted"
UNAVAILABLE = 503
TOO_MANY_REQUESTS = 429


class Failure(Exception):  # noqa: N818  (data about a request, not an error of the program)
    """A request that failed: its kind, one phrase for a person, and whether to try again."""

    def __init__(
        self,
        kind: str,
        phrase: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        body: str = "",
        location: str | None = None,
    ):
        super().__init__(phrase)
        self.kind = kind
        self.phrase = phrase
        self.status = status
        self.retry_after_s = retry_after_s
        self.body = body
        """The body of the server's reply, redacted."""
        self.location = location
        """Target of a redirect; None if the reply is no redirect."""

    @property
    def nothing_generated(self) -> bool:
        """True if the request certainly never reached the model, and may be sent again."""
        return self.kind in (REFUSED, HTTP_429) or self.status == UNAVAILABLE


class Compressed(Failure):
    """A reply in a compression that cannot be undone here; `encoding` names it."""

    def __init__(self, encoding: str):
        super().__init__(
            MALFORMED, f"the reply is compressed ({encoding}), which was not asked for"
        )
        self.encoding = encoding


def failed_status(
    status: int, body: str, said: str, retry_after: str | None, location: str | None
) -> Failure:
    """The failure of a reply whose status is not 200; `said` is the server's message."""
    rest = HTTP_5XX if status >= 500 else HTTP_4XX
    kind = HTTP_429 if status == TOO_MANY_REQUESTS else rest
    phrase = f"the server answered {status}" + (f": {said}" if said else "")
    return Failure(
        kind,
        phrase,
        status=status,
        retry_after_s=_seconds(retry_after),
        body=body,
        location=location if 300 <= status < 400 else None,
    )


def failed_transport(error: Exception) -> Failure:
    """The failure behind an exception of the HTTP client; quotes nothing of the request."""
    if isinstance(error, TimeoutError):
        return Failure(TIMEOUT, "no connection in time")
    if isinstance(error, aiohttp.ClientConnectorError | ssl.SSLError):
        return Failure(REFUSED, f"no connection: {_reason(error)}")
    if isinstance(error, aiohttp.ClientPayloadError):
        # aiohttp keeps the reset's name only, in a text of its own.
        cut = "ConnectionResetError" in str(error)
        return Failure(RESET if cut else TRUNCATED, "the connection broke within the reply")
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | OSError):
        return Failure(RESET, "the connection was reset")
    return Failure(MALFORMED, f"the reply is not valid HTTP ({type(error).__name__})")


def _reason(error: Exception) -> str:
    inner = getattr(error, "os_error", None) or error
    return getattr(inner, "strerror", None) or type(inner).__name__


def _seconds(retry_after: str | None) -> float | None:
    """Seconds of a Retry-After header, be it a number or a date; None if it is neither."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return _until(retry_after or "")
    return seconds if 0 <= seconds < float("inf") else None


def _until(date: str) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
