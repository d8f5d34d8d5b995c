"""Errors in replies: a server's own words, in any of their fields, and replies that are no JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson

from detcheck.engines.openai.connection import redact
from detcheck.engines.openai.endings import gave_up
from detcheck.engines.openai.failures import MALFORMED, Failure
from detcheck.text import one_line

COMPLAINTS = ("error", "errors", "detail", "message", "msg", "error_msg", "errmsg", "error_message")
"""Fields in which servers describe an error."""
_STATUSES = ("status", "status_code", "code", "statusCode")
"""Fields in which they say that there is one."""
BAD_STATUSES = range(400, 600)
"""Those of HTTP; some servers have codes of their own, such as 20000 for success."""


def complaint(chunk: dict[str, Any], secrets: Sequence[str]) -> str | None:
    """The server's own words, without `secrets`, if a chunk is an error; None if it is not.

    Errors also come with status 200, and without a field `error`.
    """
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        for place in _places(choice):
            if place.get("error"):
                chunk = {"error": place["error"]}
    declared = _declares_error(chunk)
    if choices and not declared:
        return None
    words = server_words(chunk, secrets)
    if not declared and not words:
        return None
    return words or as_words({**chunk, "choices": None}, secrets) or "it gave no reason"


def words_of_error(data: bytes, secrets: Sequence[str] = ()) -> str:
    """The message in the data of an error event, else all the data."""
    try:
        value = parse_json(data)
    except Failure:
        words = one_line(redact(data[:4096].decode("utf-8", "replace"), secrets).strip())[:200]
    else:
        words = server_words(value, secrets) or as_words(value, secrets)
    return words or "it gave no reason"


def _places(choice: Any) -> list[dict[str, Any]]:
    """A choice, and its delta and message, if they are objects."""
    if not isinstance(choice, dict):
        return []
    held = (choice, choice.get("delta"), choice.get("message"))
    return [place for place in held if isinstance(place, dict)]


def _declares_error(chunk: dict[str, Any]) -> bool:
    """True if an object says that it is an error, whatever stands beside."""
    if chunk.get("error") or chunk.get("errors") or chunk.get("success") is False:
        return True
    if "error" in (chunk.get("type"), chunk.get("object")):
        return True
    inner = chunk.get("base_resp")  # MiniMax: its `status_code` is 0 if all is well
    if isinstance(inner, dict) and inner.get("status_code"):
        return True
    return any(_is_bad_status(chunk.get(name)) for name in _STATUSES)


def _is_bad_status(value: Any) -> bool:
    if isinstance(value, str):
        return gave_up(value)
    return type(value) is int and value in BAD_STATUSES


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


def as_words(data: dict[str, Any], secrets: Sequence[str] = ()) -> str:
    """What an object without an answer holds, short and on one line; empty if it holds nothing."""
    told = {name: value for name, value in data.items() if value not in (None, [], {}, "")}
    try:
        return one_line(redact(json.dumps(told), secrets))[:160] if told else ""
    except RecursionError:
        return ""


def server_words(data: dict[str, Any], secrets: Sequence[str] = ()) -> str:
    """The message of an error reply, short and on one line; empty if there is none."""
    if isinstance(data.get("message"), dict) and not data.get("error"):
        return ""  # a message of the model, in another API
    told = [data[name] for name in COMPLAINTS if data.get(name) not in (None, True, "", {}, [])]
    error = told[0] if told else ""
    if isinstance(error, dict):
        error = error.get("message") or error
    if not isinstance(error, str):
        try:
            error = json.dumps(error)
        except RecursionError:  # orjson reads deeper than json writes
            return ""
    return one_line(redact(error, secrets))[:200]


def _quoted(data: bytes, secrets: Sequence[str]) -> str:
    """The beginning of a reply that cannot be read, for a person; empty if it has none."""
    words = redact(data[:4096].decode("utf-8", "replace"), secrets).strip()
    return f": {one_line(words)[:120]}" if words else ""
