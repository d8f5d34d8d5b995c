"""Finish reasons: which values end a reply, and which mean that the server gave it up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NOT_EMPTY = ("length", "tool_calls", "function_call", "content_filter")
"""Finish reasons that an empty answer cannot have."""
UNTOLD = "unknown"
"""Finish reason of an answer whose stream ended in order and gave none."""
_NO_REASON = frozenset(
    (
        *("", "null", "none", "nil", "undefined", "unspecified", "finish_reason_unspecified"),
        *("false", "true", "0", "n_a", "not_finished", "unfinished", "in_progress", "running"),
        *("finish_reason_none", "no_reason", "not_stopped", "unset", "ongoing", "processing"),
        *("pending", "generating", "streaming", "continue", "not_end", "notend"),
    )
)
"""Words that stand on chunks in the middle of a reply and end nothing."""
_GAVE_UP = re.compile(
    r"abort|cancel|error|fail|timed?_?out|deadline|interrupt|disconnect|kill|overload|preempt|evict"
    r"|max_?time|rate_?limit|throttl|quota|reject|dropped|stalled|terminated|(?:^|_)internal(?:_|$)"
    r"|unavailable|exception|crash|shut_?down|insufficient|out_of_memory|(?:^|_)oom(?:_|$)"
    r"|time_?limit|expired|incomplete|unload|user_stop|connection|closed|server_busy|restart"
    r"|(?:^|_)(?:died|dead|lost|hung|panic|fault)(?:_|$)"
)
_NAMES = ("finish_reason", "finishReason", "finish_details", "stop_reason", "stopReason")
"""Fields in which servers say why a reply ended, the most telling first."""
REASON_FIELDS = frozenset((*_NAMES, "native_finish_reason"))
"""All fields that are read for a reason."""


def reason_of(choice: Mapping[str, Any], chunk: Mapping[str, Any] | None = None) -> str | None:
    """The reason of a choice, wherever it stands: beside its text, within it, or in its `chunk`.

    A reason that says that the server gave up counts before all others, such as the one of a
    provider behind a proxy. None if there is none.
    """
    held = (choice, choice.get("delta"), choice.get("message"), chunk)
    places = [place for place in held if isinstance(place, dict)]
    reasons = [reason for name in _NAMES for place in places if (reason := _reason(place, name))]
    native = finish_reason(choice.get("native_finish_reason"))
    failed = (reason for reason in (*reasons, native) if reason is not None and gave_up(reason))
    return next(failed, reasons[0] if reasons else None)


def _reason(place: Mapping[str, Any], name: str) -> str | None:
    return finish_reason(place.get(name)) if name in place else None


def finish_reason(value: Any) -> str | None:
    """The reason in a chunk's `finish_reason`; None if it holds none."""
    if isinstance(value, dict):  # SGLang's own API: {"type": "length", "length": 8}
        value = value.get("type") or value.get("reason")
    if not isinstance(value, str) or _plain(value) in _NO_REASON:
        return None
    return value.strip()


def gave_up(reason: str) -> bool:
    """True if a finish reason says that the server did not finish its answer."""
    return _GAVE_UP.search(_plain(reason)) is not None


def _plain(word: str) -> str:
    """Lower case, with `_` between words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word.strip())
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")
