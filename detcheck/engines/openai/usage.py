"""Counts that a server reports: tokens of the answer, and those of them it may hide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_TOKENS = 2**31 - 1
"""A larger count is not believed."""
_COUNTED = ("completion_tokens", "output_tokens", "generated_tokens")
_REASONING = ("reasoning_tokens", "thinking_tokens", "thoughts_tokens", "thoughts_token_count")
_DETAILS = ("completion_tokens_details", "output_tokens_details")


@dataclass(frozen=True, slots=True)
class Usage:
    """The last usage of a reply."""

    completion_tokens: int | None = None
    """Tokens generated; None if the server did not say."""
    reasoning_tokens: int = 0
    """Tokens of reasoning; most servers count them among `completion_tokens`."""

    def updated(self, usage: Any) -> Usage:
        """The same with what a chunk's `usage` says; unusable numbers say nothing."""
        if not isinstance(usage, dict):
            return self
        counted = _first(usage, _COUNTED) or None  # 0 of an answer that has text says nothing
        total, prompt = _count(usage, "total_tokens"), _count(usage, "prompt_tokens")
        if counted is None and total is not None and prompt is not None and total > prompt:
            counted = total - prompt
        details = [usage, *(usage[name] for name in _DETAILS if isinstance(usage.get(name), dict))]
        reasoning = max(_first(one, _REASONING) or 0 for one in details)
        return Usage(
            self.completion_tokens if counted is None else counted,
            reasoning or self.reasoning_tokens,
        )

    def unseen(self, shown: int, *, has_reasoning: bool) -> int:
        """Tokens that were counted and not shown, at the least.

        `shown` is the most tokens that the shown text can have. An end-of-sequence token is
        counted and has no text.
        """
        missing = (self.completion_tokens or 0) - shown - 1
        return max(0, missing, 0 if has_reasoning else self.reasoning_tokens)


def _first(usage: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """The first of these numbers that the server gave; None if it gave none."""
    counts = (_count(usage, name) for name in names)
    return next((number for number in counts if number is not None), None)


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None
