"""Forward passes as the in-process engines publish them: who takes part, and where each one lies.

An observer is given to an engine by `InProcessEngine.observed_by`. It sees each forward pass of a
trial as it is computed, and the scores that the next tokens are chosen from.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch

from detcheck.engines.decoding import RankedTokens


@dataclass(frozen=True, slots=True)
class Extent:
    """Along some dimension a forward pass has `whole` entries; `own` of them are one request's."""

    own: int
    whole: int
    start: int
    """Index of the first of its own entries."""


@dataclass(frozen=True, slots=True)
class RequestPlace:
    """The place of one request in the tensors of a forward pass."""

    extents: tuple[Extent, ...]
    """Along every dimension that grows with the load, such as tokens, keys and requests."""
    row: int
    """Its index along the first dimension of (batch, tokens, hidden)."""
    last_token: int
    """Index of its last token along the second dimension of (batch, tokens, hidden)."""
    score_row: int
    """Its row of the scores from which the next tokens are chosen."""


class ForwardPass(Protocol):
    """One forward pass of the model."""

    @property
    def rows(self) -> int:
        """Requests that are computed together."""
        ...

    @property
    def query_tokens(self) -> int:
        """Tokens that are computed, padding included."""
        ...

    def place(self, request: int) -> RequestPlace | None:
        """The place of the request at this position of the trial.

        None if it takes no part, or is given no token after this pass.
        """
        ...


@dataclass(frozen=True, slots=True)
class PackedPass:
    """A pass of continuous batching: the tokens of all requests one after another, in one row."""

    requests: tuple[int, ...]
    """Positions in the trial, in the order in which the requests are packed."""
    query_lengths: tuple[int, ...]
    """Tokens that each of them brings."""
    speaking: tuple[bool, ...]
    """True for each of them that is given a token after this pass."""
    key_bounds: tuple[Sequence[int], ...] = ()
    """Cumulative number of keys, 0 first, by kind of attention; empty if nobody asks."""

    @property
    def rows(self) -> int:
        """See `ForwardPass`."""
        return len(self.requests)

    @property
    def query_tokens(self) -> int:
        """See `ForwardPass`."""
        return sum(self.query_lengths)

    def place(self, request: int) -> RequestPlace | None:
        """See `ForwardPass`."""
        if request not in self.requests:
            return None
        at = self.requests.index(request)
        if not self.speaking[at]:
            return None
        tokens = _between((0, *accumulate(self.query_lengths)), at)
        keys = (_between(bounds, at) for bounds in self.key_bounds)
        score_row = sum(self.speaking[:at])
        return RequestPlace(
            (tokens, *keys, Extent(1, sum(self.speaking), score_row)),
            row=0,
            last_token=tokens.start + tokens.own - 1,
            score_row=score_row,
        )


@dataclass(frozen=True, slots=True)
class PaddedPass:
    """A pass of a lockstep batch: (requests, tokens), padded on the left."""

    rows: int
    tokens: int
    """Tokens of each row, padding included: the whole prompt in prefill, one in decode."""
    keys: int
    """Keys of each row, padding included."""
    own_keys: tuple[int, ...]
    """Keys of each row without padding."""

    @property
    def query_tokens(self) -> int:
        """See `ForwardPass`."""
        return self.rows * self.tokens

    def place(self, request: int) -> RequestPlace | None:
        """See `ForwardPass`."""
        own_keys = self.own_keys[request]
        own = own_keys if self.tokens == self.keys else self.tokens
        padding = self.tokens - own
        return RequestPlace(
            (
                Extent(1, self.rows, request),
                Extent(own, self.tokens, padding),
                Extent(own_keys, self.keys, self.keys - own_keys),
                Extent(own, self.query_tokens, request * self.tokens + padding),
            ),
            row=request,
            last_token=self.tokens - 1,
            score_row=request,
        )


class PassObserver(Protocol):
    """Sees the forward passes of a trial. An exception from it ends the trial."""

    def around(self, forward_pass: ForwardPass) -> AbstractContextManager[Any] | None:
        """A context for the model's own forward; None if this pass is of no interest."""
        ...

    def scored(self, forward_pass: ForwardPass, scores: torch.Tensor, chosen: RankedTokens) -> None:
        """After the pass: the model's scores, (speaking requests, vocabulary), and the choice.

        `scores` are the logits as the model gave them, in float32, on the model's device.
        """
        ...


def _between(bounds: Sequence[int], at: int) -> Extent:
    return Extent(bounds[at + 1] - bounds[at], bounds[-1], bounds[at])
