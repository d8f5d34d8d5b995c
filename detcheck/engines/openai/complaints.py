"""Errors in replies: a server's own words, in any of their fields, and replies that are no JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson

from detcheck.engines.openai.connection import redact
from detcheck.engines.openai.failures import MALFORMED, Failure
from detcheck.text import one_line

COMPLAINTS = ("error", "errors", "detail", "message", "msg", "error_msg", "errmsg", "error_message")
"""Fields in which servers describe an error."""


def complaint(chunk: dict[str, Any], secrets: Sequence[str]) -> str | None:
    """The server's own words, without `secrets`, if a chunk is an error; None if it is not.

    Errors also come with status 200, and without a field `error`.
    """
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict) and choice.get("error"):
        chunk = {"error": choice["error"]}
    declared = chunk.get("error") or chunk.get("errors") or chunk.get("type") == "error"
    declared = bool(declared) or chunk.get("object") == "error"
    if choices and not declared:
        return None
    words = server_words(chunk)
    if not declared and not words:
        return None
    return redact(words, secrets) or "it gave no reason"


def parse_json(data: bytes, secrets: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object from untrusted bytes.

    Raises Failure, quoting its beginning without `secrets`, if it is anything else.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:  # orjson refuses half a surrogate pair, which JSON may hold
            value = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError:
            raise Failure(MALFORMED, "the reply is not JSON in UTF-8") from None
        except (ValueError, RecursionError):
            raise Failure(MALFORMED, f"the reply is not JSON{_quoted(data, secrets)}") from None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        raise Failure(MALFORMED, f"the reply is not a JSON object{_quoted(data, secrets)}")
    return value


def as_words(data: dict[str, Any]) -> str:
    """What an object without an answer holds, short and on one line; empty if it holds nothing."""
    told = {name: value for name, value in data.items() if value not in (None, [], {}, "")}
    try:
        return one_line(json.dumps(told))[:160] if told else ""
    except RecursionError:
        return ""


def server_words(data: dict[str, Any]) -> str:
    """The message of an error reply, short and on one line; empty if there is none."""
    error = next((data[name] for name in COMPLAINTS if data.get(name)), "")
    if isinstance(error, dict):
        error = error.get("message") or error
    if not isinstance(error, str):
        try:
            error = json.dumps(error)
        except RecursionError:  # orjson reads deeper than json writes
            return ""
    return one_line(error)[:200]


def _quoted(data: bytes, secrets: Sequence[str]) -> str:
    """The beginning of a reply that cannot be read, for a person; empty if it has none."""
    words = redact(data[:4096].decode("utf-8", "replace"), secrets).strip()
    return f": {one_line(words)[:120]}" if words else ""
