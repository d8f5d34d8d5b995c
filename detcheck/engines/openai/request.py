"""The JSON body of a request, without the fields that a server has refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import orjson

from detcheck.prompts import ChatMessage

TOP_LOGPROBS = 2
OPTIONAL = (
    *("cache_prompt", "cache_salt", "return_token_ids", "stream_options", "top_logprobs"),
    *("logprobs", "min_p", "top_k", "top_p", "seed", "temperature"),
)
"""Fields that may be left out if a server refuses them, the least missed first."""
DECODING = ("temperature", "seed", "top_p", "top_k", "min_p")
"""Those of them that decide which tokens are chosen."""
NEWER_LIMIT = "max_completion_tokens"
"""The name that some servers want instead of `max_tokens`."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request to a model."""

    prompt: str
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    cache_salt: str | None = None
    """Name of a prefix cache of its own; None shares the server's."""
    chat: tuple[ChatMessage, ...] = ()
    """The messages that ask the prompt; if it is empty, one message of the user."""
    choices: int = 1
    """Completions that are asked for, as `n`."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one server has to be asked."""

    model: str
    chat: bool
    """True for /chat/completions, False for /completions."""
    dropped: frozenset[str] = frozenset()
    """Optional fields that the server refuses."""
    limit_field: str = "max_tokens"
    filters: tuple[tuple[str, float], ...] = ()
    """Names and values of options that shape sampling; sent above temperature 0."""

    @property
    def path(self) -> str:
        """Path below the base URL."""
        return "/chat/completions" if self.chat else "/completions"

    def without(self, fields: Iterable[str]) -> Dialect:
        """The same dialect without `fields`."""
        return replace(self, dropped=self.dropped | set(fields))

    def with_newer_limit(self) -> Dialect:
        """The same dialect with the newer name of the token limit."""
        return replace(self, limit_field=NEWER_LIMIT)

    def on_the_other_path(self) -> Dialect:
        """The same dialect for /completions instead of /chat/completions, or the reverse."""
        return replace(self, chat=not self.chat)

    def body(self, question: Question) -> bytes:
        """The JSON body of one request."""
        asked: dict[str, Any] = {"prompt": question.prompt}
        if self.chat:
            messages = question.chat or (ChatMessage("user", question.prompt),)
            asked = {"messages": msgspec.to_builtins(messages)}
        return orjson.dumps(asked | self.fields(question))

    def sent(self, question: Question) -> str:
        """The path and every field of a request but the prompt, as one line."""
        return f"POST {self.path} {orjson.dumps(self.fields(question)).decode()}"

    def fields(self, question: Question) -> dict[str, Any]:
        """The fields of one request but the prompt."""
        fields: dict[str, Any] = {
            "model": self.model,
            self.limit_field: question.max_new_tokens,
            "temperature": question.temperature,
            "seed": question.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        if question.choices > 1:
            fields["n"] = question.choices
        if question.temperature > 0:
            fields |= dict(self.filters)
        if self.chat:
            fields |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        else:
            fields["logprobs"] = TOP_LOGPROBS
        if question.cache_salt is not None:
            fields |= {"cache_salt": question.cache_salt, "cache_prompt": False}
        return {name: value for name, value in fields.items() if name not in self.dropped}
