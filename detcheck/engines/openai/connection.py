"""How to reach an endpoint: keys, headers and time limits, which no run keeps and nothing shows."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from detcheck.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_VARIABLE = "env:"
_SHOWN_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
"""The usual form of a variable's name; anything else may be the key itself, and is not shown."""
_SENSITIVE = re.compile(r"auth|key|token|secret|cookie|password|credential", re.IGNORECASE)
_OURS = {
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "accept-encoding",
}
_LIMITS = ("total_s", "check_timeout_s", "connect_s", "first_token_s", "between_tokens_s")
SHORTEST_SECRET = 6
"""Shorter values are not removed from replies: they occur in any text."""
REDACTED = "[redacted]"


@dataclass(frozen=True, slots=True)
class Connection:
    """Keys, headers and time limits. Raises UsageError if a header or a limit is not usable.

    Values are read from the environment when they are sent; `repr` shows none.
    """

    api_key_env: str | None = None
    """Name of the environment variable that holds the API key; None sends none."""
    headers: tuple[str, ...] = field(default=(), repr=False)
    """Lines such as `X-Tenant: blue`, or `X-Tenant: env:NAME` for a variable's value."""
    connect_s: float = 10.0
    """Longest wait for a connection."""
    first_token_s: float = 300.0
    """Longest wait for the first token of a reply."""
    between_tokens_s: float = 120.0
    """Longest silence in the middle of a reply."""
    total_s: float = 1800.0
    """Longest time that a request may take in all."""
    check_timeout_s: float = 60.0
    """Longest time that each short request of the checks before an experiment may take."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "headers", tuple(self.headers))
        given = {"authorization"} if self.api_key_env is not None else set()
        for line in self.headers:
            name = _split(line)[0]
            if name.lower() in given:
                raise UsageError(f"The header {name} is given twice: leave one out.")
            given.add(name.lower())
        for name in _LIMITS:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise UsageError(f"`{name}` must be a number of seconds above 0, not {value!r}.")

    def within(self, seconds: float) -> Connection:
        """The same connection, with no request and no wait longer than `seconds`."""
        return replace(
            self,
            connect_s=min(self.connect_s, seconds),
            first_token_s=seconds,
            between_tokens_s=seconds,
            total_s=seconds,
            check_timeout_s=min(self.check_timeout_s, seconds),
        )

    def resolve(self) -> dict[str, str]:
        """The headers to send, key included. They are secrets: only the client may have them.

        Raises UsageError if a variable is not set; the message names it, never its value.
        """
        headers = dict(_resolved(line) for line in self.headers)
        if self.api_key_env is not None:
            key = _variable(self.api_key_env, "`api_key_env`")
            headers["Authorization"] = _checked(f"Bearer {key}", f"the key in {self.api_key_env}")
        return headers

    def secrets(self) -> tuple[str, ...]:
        """Values that must be in nothing that is kept or shown, longest first."""
        values = {os.environ.get(self.api_key_env or "", "").strip()}
        for line in self.headers:
            name, value = _split(line)
            if value.startswith(_VARIABLE) or _SENSITIVE.search(name):
                resolved = _resolved(line)[1]
                values |= {resolved, resolved.split(" ")[-1]}
        return tuple(sorted((v for v in values if len(v) >= SHORTEST_SECRET), key=len)[::-1])


def redact(text: str, secrets: Sequence[str]) -> str:
    """`text` with every one of `secrets` replaced."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text


def _split(line: str) -> tuple[str, str]:
    """Name and value of a header line; raises UsageError, which never shows the value."""
    name, colon, value = line.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not _NAME.fullmatch(name):
        raise UsageError(
            "One of `headers` has not the form 'Name: value' or 'Name: env:VARIABLE': write it so."
        )
    if name.lower() in _OURS:
        raise UsageError(f"The header {name} is detcheck's own to send: leave it out.")
    return name, _checked(value, f"the header {name}")


def _checked(value: str, name: str) -> str:
    if not _VALUE.fullmatch(value):
        raise UsageError(
            f"The value of {name} holds characters that HTTP cannot carry: check for line breaks."
        )
    return value


def _resolved(line: str) -> tuple[str, str]:
    name, value = _split(line)
    if not value.startswith(_VARIABLE):
        return name, value
    variable = value.removeprefix(_VARIABLE)
    return name, _checked(_variable(variable, f"the header {name}"), f"the header {name}")


def _variable(name: str, wanted_by: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value and not _SHOWN_NAME.fullmatch(name):
        raise UsageError(
            f"The environment variable that {wanted_by} names is not set: give the name of one, "
            "such as MY_KEY, and never the key itself."
        )
    if not value:
        raise UsageError(
            f"The environment variable {name} is not set, and {wanted_by} needs it: export it."
        )
    return value
