"""Counts that a server reports: tokens of the answer, those it hides, and cached prompt tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_TOKENS = 2**31 - 1
"""A larger count is not believed."""
_COUNTED = ("completion_tokens", "output_tokens", "generated_tokens")
_REASONING = ("reasoning_tokens", "thinking_tokens", "thoughts_tokens", "thoughts_token_count")
_DETAILS = ("completion_tokens_details", "output_tokens_details")
_CACHED = ("cached_tokens", "prompt_cache_hit_tokens")
_PROMPT_DETAILS = ("prompt_tokens_details", "input_tokens_details")


@dataclass(frozen=True, slots=True)
class Usage:
    """The last usage of a reply."""

    completion_tokens: int | None = None
    """Tokens generated; None if the server did not say."""
    reasoning_tokens: int = 0
    """Tokens of reasoning; most servers count them among `completion_tokens`."""
    cached_tokens: int | None = None
    """Prompt tokens that came from the prefix cache; None if the server did not say."""

    def updated(self, usage: Any) -> Usage:
        """The same with what a chunk's `usage` says; unusable numbers say nothing."""
        if not isinstance(usage, dict):
            return self
        counted = _first(usage, _COUNTED) or None  # 0 of an answer that has text says nothing
        total, prompt = _count(usage, "total_tokens"), _count(usage, "prompt_tokens")
        if counted is None and total is not None and prompt is not None and total > prompt:
            counted = total - prompt
        reasoning = max(_first(one, _REASONING) or 0 for one in _with(usage, _DETAILS))
        cached = [_first(one, _CACHED) for one in _with(usage, _PROMPT_DETAILS)]
        return Usage(
            self.completion_tokens if counted is None else counted,
            reasoning or self.reasoning_tokens,
            max((number for number in cached if number is not None), default=self.cached_tokens),
        )

    def unseen(self, shown: int, *, has_reasoning: bool) -> int:
        """Tokens that were counted and not shown, at the least.

        `shown` is the most tokens that the shown text can have. An end-of-sequence token is
        counted and has no text.
        """
        missing = (self.completion_tokens or 0) - shown - 1
        return max(0, missing, 0 if has_reasoning else self.reasoning_tokens)


def _with(usage: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """A `usage` and those of its parts that have one of `names`."""
    return [usage, *(usage[name] for name in names if isinstance(usage.get(name), dict))]


def _first(usage: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """The first of these numbers that the server gave; None if it gave none."""
    counts = (_count(usage, name) for name in names)
    return next((number for number in counts if number is not None), None)


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None
