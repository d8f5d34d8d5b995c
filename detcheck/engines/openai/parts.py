"""The text of one choice of a reply, from all fields and parts that servers use.

Reasoning and answer both count. A field that repeats another of the same kind counts once. Content
that is not part of the text is named, so that no answer passes half read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from detcheck.engines.openai.endings import REASON_FIELDS
from detcheck.engines.openai.failures import MALFORMED, Failure

REASONING = (
    *("reasoning_content", "reasoning", "reasoning_text", "reasoning_details", "thinking"),
    *("thinking_content", "thinking_blocks", "thought", "thoughts"),
)
"""Fields of a message that hold its reasoning; servers send one text in several of them."""
CALLS = ("tool_calls", "function_call")
ANSWER = ("content", "text", "refusal", "audio")
_TEXTS = (
    *("text", "thinking", "reasoning", "content", "summary", "refusal", "output_text", "value"),
    "transcript",
)
"""Fields of a part that hold its text."""
_THINKING = ("thinking", "reasoning", "thought", "analysis")
"""Beginnings of the `type` of a part that holds reasoning."""
_UNREADABLE = ("encrypted", "redacted")
"""Within the `type` of a part that holds cipher text, which is new in every reply."""
_LABELS = frozenset(
    (
        *("type", "id", "index", "format", "signature", "role", "name", "cache_control", "status"),
        *("object", "tool_call_id", "thought_signature", "thoughtSignature"),
    )
)
"""Fields of a part or message that are no part of the answer."""
_KNOWN = frozenset((*REASONING, *CALLS, *ANSWER, *_LABELS, *REASON_FIELDS, "token_ids"))
_BESIDE = frozenset(
    (
        *("index", "delta", "message", "text", "logprobs", "error", "usage", *REASON_FIELDS),
        *("token_ids", "prompt_token_ids", "prompt_logprobs", "meta_info", "matched_stop"),
        *("content_filter_results", "hidden_states", "content_filter_offsets", "routed_experts"),
        "seed",
    )
)
"""Fields of a choice that are read elsewhere, or are no part of the answer."""
_PLAIN = {"role", "content"}
_CIPHERS = ("encrypted_content", "redacted_content")
"""Fields of a part that hold cipher text."""
_TOOLS = ("function", "custom")
_ARGUMENTS = ("arguments", "input", "parameters")
_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class Spoken:
    """The content of one delta or message."""

    text: str
    """Its reasoning, its answer and its calls of tools, in this order."""
    has_reasoning: bool
    unread: tuple[str, ...] = ()
    """Names of fields with content that are not known, and not in `text`."""
    reasoning: tuple[tuple[str, str], ...] = ()
    """(field, text) of the reasoning with which `text` begins; equal texts are there once."""


NOTHING = Spoken("", has_reasoning=False)


def spoken(message: Any, legacy: Any = None) -> Spoken:
    """The text of a `delta` or `message`, and of the choice's own `text` (`legacy`).

    A message that is a bare text is its content. Raises Failure if it is nested too deeply to be
    an answer.
    """
    fields: Mapping[str, Any] = message if isinstance(message, dict) else {}
    if isinstance(message, str):
        fields = {"content": message}
    plain = fields.get("content", "") if fields.keys() <= _PLAIN else None
    if isinstance(plain, str) and not (plain and legacy):  # nearly every chunk
        return Spoken(plain or _text(legacy), has_reasoning=False)
    thinking, content = _content(fields.get("content"))
    told = [(name, _text(fields.get(name))) for name in REASONING]
    by_field = tuple((name, text) for name, text in (*told, ("content", thinking)) if text)
    reasoning = _once(text for _, text in by_field)
    others = (_text(fields.get(name)) for name in ANSWER[1:])
    answer = _once((content, *others, _text(legacy)))
    calls = _once(_calls(fields.get(name)) for name in CALLS)
    unread = [name for name, value in fields.items() if name not in _KNOWN and _holds(value)]
    read = [name for name in (*REASONING, *ANSWER) if name in fields]
    unread += [name for name in read if _is_number(fields[name])]
    unread += dict.fromkeys(stray for name in read for stray in _strays(fields[name]))
    return Spoken(reasoning + answer + calls, bool(reasoning), tuple(unread), by_field)


def beside(choice: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """(reasoning, unread) of a choice, beside its delta or message.

    `reasoning` are the fields of reasoning by name; `unread` the names of fields with content that
    are not known.
    """
    others = [name for name in choice if name not in _BESIDE and _holds(choice[name])]
    reasoning = {name: choice[name] for name in others if name in REASONING}
    return reasoning, tuple(name for name in others if name not in reasoning)


def _once(texts: Iterable[str]) -> str:
    """The texts one after the other, equal ones once."""
    return "".join(dict.fromkeys(text for text in texts if text))


def _content(value: Any) -> tuple[str, str]:
    """(reasoning, answer) of `content`: a text, or a list of parts."""
    if not isinstance(value, list):
        return "", _text(value)
    thinking = "".join(_text(part) for part in value if _is_thinking(part))
    return thinking, "".join(_text(part) for part in value if not _is_thinking(part))


def _is_thinking(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind.startswith(_THINKING)


def _text(value: Any, depth: int = 0) -> str:
    """All text in a part; of a part without text its content as JSON."""
    if depth > _DEEPEST:
        raise Failure(MALFORMED, "the reply's parts are nested too deeply")
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text(one, depth + 1) for one in value)
    if not isinstance(value, dict) or _is_unreadable(value):
        return ""
    text = _once(_text(value.get(name), depth + 1) for name in _TEXTS)
    if isinstance(sound := value.get("data"), str) and "transcript" in value:
        return text + sound
    return text or _as_json(value)


def _strays(value: Any) -> Iterator[str]:
    """Names of the content in a text's parts that is not in the text."""
    if isinstance(value, list):
        for part in value:
            yield from _strays(part)
    elif isinstance(value, dict):
        yield from (name for name in _CIPHERS if value.get(name))
        if _is_unreadable(value):
            yield value["type"]
        elif any(_text(value.get(name)) for name in _TEXTS):
            known = {*_LABELS, *_CIPHERS, *_TEXTS, *(("data",) if "transcript" in value else ())}
            yield from (name for name in value if name not in known and _holds(value[name]))


def _is_unreadable(part: Mapping[str, Any]) -> bool:
    kind = part.get("type")
    return isinstance(kind, str) and any(word in kind for word in _UNREADABLE)


def _as_json(part: Mapping[str, Any]) -> str:
    """The content of a part of an unknown kind, such as an image; empty if it has none."""
    labels = {*_LABELS, *_CIPHERS}
    held = {name: value for name, value in part.items() if name not in labels and _holds(value)}
    return _json(held) if held else ""


def _calls(value: Any) -> str:
    """Names and arguments of the tools that the model calls; ids of calls are new every time."""
    calls = value if isinstance(value, list) else [value]
    return "".join(_call(call) for call in calls if isinstance(call, dict))


def _call(call: Mapping[str, Any]) -> str:
    """The text of one call, of a function or another kind of tool."""
    inner = next((call[kind] for kind in _TOOLS if isinstance(call.get(kind), dict)), call)
    texts = [inner.get("name"), *(inner.get(name) for name in _ARGUMENTS)]
    told = [_json(text) if isinstance(text, dict) else _text(text) for text in texts]
    others = {name: each for name, each in inner.items() if name not in ("name", *_ARGUMENTS)}
    return "".join(told) + _as_json(others)


def _json(value: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except (TypeError, ValueError):
        raise Failure(MALFORMED, "a part of the reply cannot be read") from None


def _holds(value: Any, depth: int = 0) -> bool:
    """True if there is text in a value, or a number in a list or object."""
    if depth > _DEEPEST:
        return True
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return any(_holds(one, depth + 1) or _is_number(one) for one in inner)
    return isinstance(value, str) and bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
