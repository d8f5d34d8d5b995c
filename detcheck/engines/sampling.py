"""Choosing the next token: the best one at temperature 0, else a sample that the seed decides.

Above temperature 0 a token is drawn by adding Gumbel noise to the scores and taking the best. The
noise depends on the seed and the token's position in its completion only. Which tokens may be drawn
is decided for each row by itself, in one fixed order, so that it does not depend on the batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from detcheck.engines.decoding import RankedTokens, rank
from detcheck.engines.partial import Draw

FURTHEST = 100.0
"""Largest gap that is recorded above temperature 0, in nats: also of a token that no other token
could replace."""
_OUT_OF_REACH = 1e4
"""Subtracted from the scores of tokens that may not be drawn."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which tokens may be drawn. Each filter keeps the first of the tokens, best first.

    Tokens are ordered by score, the lowest index first among equals. `top_k` comes first, `top_p`
    counts probabilities among the tokens that `top_k` has kept, `min_p` comes last.
    """

    top_k: int = 0
    """Keep so many tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest tokens whose probabilities sum to at least this; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens that are at least this times as probable as the best; 0 keeps all."""

    @property
    def keep_all(self) -> bool:
        """True if every token may be drawn."""
        return self == Filters()

    def candidates(self, scores: torch.Tensor, temperature: float) -> torch.Tensor:
        """Indices of the tokens that may be drawn, best first; (candidates,) int64 on the CPU.

        `scores` are the logits of one row, (vocabulary,) float32 on the CPU. Everything is
        computed in float64 and of this row alone.
        """
        scaled = scores.double() / temperature
        best = scaled.max()
        kept = self._within_reach(scaled, best)
        order = scaled[kept].sort(descending=True, stable=True)
        kept, scaled_kept = kept[order.indices], order.values
        if self.top_k:
            kept, scaled_kept = kept[: self.top_k], scaled_kept[: self.top_k]
        count = len(kept)
        if self.top_p < 1:
            whole = scaled_kept if self.top_k else scaled
            mass = (scaled_kept - best).exp().cumsum(0) / (whole - best).exp().sum()
            count = min(count, int((mass < self.top_p).sum()) + 1)
        if self.min_p > 0:
            count = min(count, int((scaled_kept >= best + math.log(self.min_p)).sum()))
        return kept[:count]

    def _within_reach(self, scaled: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        """Indices, ascending, of tokens that some filter may keep: the others need no sorting."""
        limit = -math.inf
        if self.top_k and self.top_k < len(scaled):
            limit = float(scaled.topk(self.top_k).values[-1])
        if self.top_p < 1:
            # All tokens below this limit together are less probable than 1 - top_p.
            limit = max(limit, float(best) + math.log((1 - self.top_p) / len(scaled)))
        return (scaled >= limit).nonzero()[:, 0]


class Sampler:
    """Chooses the next token of each row."""

    def __init__(self, temperature: float, filters: Filters | None = None):
        self.temperature = temperature
        self.filters = filters or Filters()
        self._noise = lru_cache(maxsize=128)(_gumbel)

    def choose(self, scores: torch.Tensor, draws: Sequence[Draw]) -> RankedTokens:
        """Choose from (rows, vocabulary) logits; `draws` has one (seed, position) for each row.

        Above temperature 0 the runner-up and the gap are those of the scores with noise, and the
        log-probability is the chosen token's by the logits themselves: at temperature 1, and
        before any filter.
        """
        if self.temperature == 0:
            return rank(scores)
        vocabulary = scores.shape[1]
        noise = torch.stack([self._noise(*draw, vocabulary) for draw in draws])
        noisy = scores.float() / self.temperature + noise.to(scores.device)
        if not self.filters.keep_all:
            noisy -= self._handicaps(scores).to(scores.device)
        chosen = rank(noisy)
        logprob = logprobs_of(scores, chosen.best)
        return replace(chosen, gap=chosen.gap.clamp_max(FURTHEST), logprob=logprob)

    def _handicaps(self, scores: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) float32 on the CPU: 0 for candidates, large for other tokens."""
        handicaps = torch.full(scores.shape, _OUT_OF_REACH)
        for row, handicap in zip(scores.float().cpu(), handicaps, strict=True):
            handicap[self.filters.candidates(row, self.temperature)] = 0
        return handicaps


def logprobs_of(scores: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Log-probability of one token of each row, (rows,) float32 on the CPU, in nats.

    `scores` are (rows, vocabulary) logits. Each row is computed on its own, so that equal logits
    give equal bits whatever the number of rows.
    """
    own = rank(scores)
    return own.logprob - (_at(scores, own.best) - _at(scores, token_ids))


def _at(scores: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """The score of one token of each row, (rows,) float32 on the CPU."""
    return scores.gather(1, token_ids.to(scores.device)[:, None])[:, 0].float().cpu()


def _gumbel(seed: int, position: int, vocabulary: int) -> torch.Tensor:
    key = hashlib.sha256(f"{seed}/{position}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
    uniform = torch.rand(vocabulary, generator=generator, dtype=torch.float64)
    return -(-uniform.clamp_min(1e-300).log()).log().float()
