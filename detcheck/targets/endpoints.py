"""Endpoints: their base URLs, and when requests arrive at them."""

from __future__ import annotations

import math
from urllib.parse import urlsplit

from detcheck.errors import UsageError

TOGETHER = "together"
NOT_A_BASE = ("/completions", "/chat", "/models")
"""Ends of paths that lie below a base URL."""


def poisson_rate(arrivals: str) -> float | None:
    """Requests a second of open-loop arrivals; None if requests arrive together.

    Raises UsageError if the setting is unknown.
    """
    if arrivals == TOGETHER:
        return None
    name, _, number = arrivals.partition(":")
    try:
        rate = float(number)
    except ValueError:
        rate = 0.0
    if name != "poisson" or not 0 < rate < math.inf:
        raise UsageError(
            f"Unknown arrivals {arrivals!r}: use together, or poisson:RATE in requests a second, "
            "such as poisson:8."
        )
    return rate


def check_endpoint(url: str) -> None:
    """Raise UsageError if `url` is no base URL. The message never shows a possible secret."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UsageError(
            "An endpoint is not a valid URL: give its base URL, such as http://localhost:8000/v1."
        ) from None
    if any(mark in url for mark in "@?#"):  # anywhere: without a scheme the parts are wrong
        raise UsageError(
            "An endpoint holds credentials, a query or a fragment: give the bare base URL, and "
            "the key by `api_key_env`."
        )
    visible = all(character.isprintable() and character != " " for character in url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not visible:
        raise UsageError(
            f"{url!r} is not the base URL of a server: give one such as http://localhost:8000/v1."
        )
    path = parts.path.rstrip("/")
    if not path or path.endswith(NOT_A_BASE):
        raise UsageError(
            f"The endpoint {url!r} is not where the OpenAI API begins: give its base URL, such as "
            f"{parts.scheme}://{parts.netloc}/v1."
        )
