"""A language model without weights: the next token depends on the prompt and the tokens so far.

Greedy answers therefore depend on the prompt alone, sampled ones on the prompt and the seed, and
an answer that took another token once goes on differently, as real ones do.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

WORDS = """
the old keeper lit a lamp and then sea went quiet under grey patient slow stars café über naïve
東京 🙂 while distant bells rang twice for ships that never came back home before morning light
touched every window along our narrow harbour street again
"""
PIECES = tuple(f" {word}" for word in WORDS.split())
END = len(PIECES)
"""End-of-sequence token; its text is empty, as servers skip special tokens."""
ALTERNATIVES = 5
"""Tokens with a probability at each position; more top log-probabilities are not given."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best tokens at one position, best first, with their log-probabilities in nats."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def swapped(self) -> Ranked:
        """The same with first and second exchanged, as by other rounding at a near tie."""
        first, second, *rest = self.token_ids
        return Ranked((second, first, *rest), self.logprobs)

    def with_gap(self, gap: float) -> Ranked:
        """The same tokens, the second `gap` nats below the first."""
        first = self.logprobs[0]
        return Ranked(self.token_ids, (first, first - gap, *(first - gap - 1 for _ in range(3))))

    def moved(self, shift: float) -> Ranked:
        """The best token's log-probability moved by `shift`, and the others away from it."""
        return Ranked(
            self.token_ids,
            tuple(p + (shift if not i else -shift) for i, p in enumerate(self.logprobs)),
        )

    def rounded(self, decimals: int | None, bits: int | None) -> Ranked:
        """The same with rounded log-probabilities; None leaves them as they are."""
        logprobs = self.logprobs
        if decimals is not None:
            logprobs = tuple(round(p, decimals) for p in logprobs)
        if bits is not None:
            parts = [math.frexp(p) for p in logprobs]
            logprobs = tuple(math.ldexp(round(m * 2**bits), e - bits) for m, e in parts)
        return Ranked(self.token_ids, logprobs)

    def sample(self, temperature: float, rng: random.Random) -> int:
        """One of the tokens, with probability ~ p^(1/temperature)."""
        top = self.logprobs[0]
        weights = [math.exp((logprob - top) / temperature) for logprob in self.logprobs]
        return rng.choices(self.token_ids, weights)[0]


class Script:
    """One answer as it grows."""

    def __init__(self, prompt: str, answer_tokens: int):
        self._state = hashlib.blake2b(prompt.encode(), digest_size=16)
        self._left = answer_tokens

    def ranked(self) -> Ranked:
        """The tokens that may come next."""
        digest = self._state.digest()
        first = digest[0] % END
        stride = 1 + digest[1] % (END // ALTERNATIVES)
        token_ids = tuple((first + stride * rank) % END for rank in range(ALTERNATIVES))
        if self._left <= 1:
            token_ids = (END, *token_ids[1:])
        gap = 0.5 + digest[2] / 128
        return Ranked(token_ids, tuple(-0.4 - gap * rank for rank in range(ALTERNATIVES)))

    def take(self, token_id: int) -> None:
        """Continue with `token_id`."""
        self._state.update(bytes([token_id]))
        self._left -= 1


def piece(token_id: int) -> str:
    """The text of a token."""
    return "" if token_id == END else PIECES[token_id]


def prompt_token_ids(prompt: str) -> list[int]:
    """Two bytes a token."""
    data = prompt.encode()
    return [int.from_bytes(data[start : start + 2], "big") for start in range(0, len(data), 2)]
