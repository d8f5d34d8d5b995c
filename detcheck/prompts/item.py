"""What is known of a prompt beside its text: its name, chat, right answer and other fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from detcheck.errors import UsageError


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who says it."""
    content: str
    """Its text."""


class PromptItem(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """The fields of one prompt beside its text. Every field may be left out."""

    id: str | None = None
    """The name of the prompt in its file."""
    answer: str | None = None
    """The right answer. It is parsed like a completion."""
    messages: tuple[ChatMessage, ...] = ()
    """The chat that is sent; if it is empty, the prompt is sent as one message of the user."""
    until: tuple[str, ...] = ()
    """An answer is parsed from the text before the first of these."""
    fields: dict[str, Any] = {}
    """All other fields of its line. They are kept and have no effect."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts as they were read."""

    prompts: tuple[str, ...]
    items: tuple[PromptItem, ...] = ()
    """One for each prompt; empty if no prompt is more than its text."""
    as_sent: bool = False
    """Whether the prompts are what a model was sent, so that no chat template may be applied."""
    lines: tuple[int, ...] = field(default=(), compare=False)
    """The number of each one's first line in its file, from 1."""


def chat_text(messages: Sequence[ChatMessage]) -> str:
    """The text by which a chat is known: its one message, or `role: content` a message."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def check_text(prompt: str, name: str) -> str:
    """Return `prompt`; raise UsageError, naming it `name`, if it has lone surrogates."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is not valid Unicode text: write it as UTF-8.") from error
    return prompt
