"""One row of a prompts file, a JSON value or a line of a table, as a prompt and its item."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from detcheck.errors import UsageError
from detcheck.prompts.item import ChatMessage, PromptItem, chat_text, check_text

_OWN = frozenset(("prompt", "messages", "id", "answer", "until"))


@dataclass(frozen=True, slots=True)
class FileRow:
    """One prompt of a file."""

    place: str
    """`FILE line N`, for messages."""
    line: int
    """Number of its first line, from 1."""
    prompt: str
    item: PromptItem
    as_sent: bool = False
    """Whether no chat template may be applied to it."""


def json_row(value: Any, place: str, line: int) -> FileRow:
    """A string, or an object with `prompt` or `messages`; raises UsageError for anything else."""
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, Mapping):
        raise UsageError(f'{place} is neither a string nor an object with "prompt" or "messages".')
    if "prompt" in value and "messages" in value:
        raise UsageError(f'{place} has both "prompt" and "messages": keep one of them.')
    messages = chat_of(value["messages"], place) if "messages" in value else ()
    prompt = chat_text(messages) if messages else value.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        found = ", ".join(map(repr, list(value)[:6])) or "no field"
        raise UsageError(
            f'{place} has no prompt ({found}): give the text as "prompt", or a chat as "messages".'
        )
    item = PromptItem(
        id=_scalar(value, "id", place),
        answer=_scalar(value, "answer", place),
        messages=messages,
        until=_until(value.get("until"), place),
        fields={name: kept for name, kept in value.items() if name not in _OWN},
    )
    return FileRow(place, line, check_text(prompt, place), item)


def chat_of(value: Any, place: str) -> tuple[ChatMessage, ...]:
    """The messages of a chat; raises UsageError if it is no chat that a model can answer."""
    try:
        messages = msgspec.convert(value, tuple[ChatMessage, ...], strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{place} has messages that are no chat ({_reason(error)}): each is an object with "
            '"role" (system, developer, user or assistant) and "content" (text).'
        ) from error
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise UsageError(f"{place} has a chat that does not end with a question of the user.")
    for message in messages:
        check_text(message.content, place)
    return messages


def _scalar(value: Mapping[str, Any], name: str, place: str) -> str | None:
    """The text or number of a field as text; None if it is missing or empty."""
    found = value.get(name)
    if isinstance(found, bool) or not isinstance(found, str | int | float | None):
        raise UsageError(f'{place} has "{name}" that is neither text nor a number.')
    if isinstance(found, float) and not math.isfinite(found):
        raise UsageError(f'{place} has "{name}" that is not a finite number.')
    text = "" if found is None else check_text(str(found), place)
    return text if text.strip() else None


def _until(value: Any, place: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) and value else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise UsageError(f'{place} has "until" that is no list of texts.')
    return tuple(texts)


def _reason(error: msgspec.ValidationError) -> str:
    return str(error).replace("`", "").replace(" - at $", ", at messages")
