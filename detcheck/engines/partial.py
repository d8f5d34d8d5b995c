"""One completion while it is being generated, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from detcheck.evidence import ObservedBatch

Draw = tuple[int, int]
"""Decides a sampled token: (seed of the request, index of the token in its completion)."""


@dataclass(slots=True)
class PartialCompletion:
    """The tokens of one request so far, and the forward passes that it took part in."""

    max_new_tokens: int
    seed: int = 0
    token_ids: list[int] = field(default_factory=list)
    runner_up_token_ids: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """Requests in each forward pass that this one took part in."""
    query_tokens_max: int = 0
    """Most query tokens of all requests together in one of these forward passes."""
    finish_reason: str | None = None
    """`stop` or `length`; None while it goes on."""
    error: str | None = None

    def joined_pass(self, rows: int, query_tokens: int) -> None:
        """Count one forward pass of `rows` requests that this request was part of."""
        self.rows.append(rows)
        self.query_tokens_max = max(self.query_tokens_max, query_tokens)

    def append(self, token: tuple[int, int, float, float], eos_token_ids: Sequence[int]) -> None:
        """Take the next token: (id, id of the runner-up, gap, log-probability)."""
        token_id, runner_up, gap, logprob = token
        self.token_ids.append(token_id)
        self.runner_up_token_ids.append(runner_up)
        self.gaps.append(gap)
        self.logprobs.append(logprob)
        if token_id in eos_token_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_new_tokens:
            self.finish_reason = "length"

    @property
    def draw(self) -> Draw:
        """Decides its next sampled token: its seed, and how many tokens it has."""
        return self.seed, len(self.token_ids)

    @property
    def observed_batch(self) -> ObservedBatch | None:
        """The batches it was computed in; None before its first forward pass."""
        if not self.rows:
            return None
        mean = sum(self.rows) / len(self.rows)
        return ObservedBatch(
            min(self.rows),
            max(self.rows),
            round(mean, 3),
            self.query_tokens_max,
            len(self.rows),
        )
