"""What is sent: one JSON body a request, without the fields that a server has refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

TOP_LOGPROBS = 2
OPTIONAL = (
    *("return_token_ids", "stream_options", "top_logprobs", "logprobs", "seed", "temperature"),
)
"""Fields that may be left out where a server refuses them, the least missed first."""
NEWER_LIMIT = "max_completion_tokens"
"""What some servers want instead of `max_tokens`."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one server wants to be asked."""

    model: str
    chat: bool
    """/chat/completions, not /completions."""
    dropped: frozenset[str] = frozenset()
    """Optional fields that it refuses."""
    limit_field: str = "max_tokens"

    @property
    def path(self) -> str:
        """Path below the base URL."""
        return "/chat/completions" if self.chat else "/completions"

    def without(self, fields: Iterable[str]) -> Dialect:
        """The same less `fields`."""
        return Dialect(self.model, self.chat, self.dropped | set(fields), self.limit_field)

    def with_newer_limit(self) -> Dialect:
        """The same with the newer name of the token limit."""
        return Dialect(self.model, self.chat, self.dropped, NEWER_LIMIT)

    def body(self, prompt: str, max_new_tokens: int, temperature: float, seed: int) -> bytes:
        """The JSON body of one request."""
        fields: dict[str, Any] = {
            "model": self.model,
            **self._question(prompt),
            self.limit_field: max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        for name in self.dropped:
            fields.pop(name, None)
        return orjson.dumps(fields)

    def _question(self, prompt: str) -> dict[str, Any]:
        if self.chat:
            return {
                "messages": [{"role": "user", "content": prompt}],
                "logprobs": True,
                "top_logprobs": TOP_LOGPROBS,
            }
        return {"prompt": prompt, "logprobs": TOP_LOGPROBS}
