"""A paged cache in which requests find the beginning of their prompt, and the count of its tokens.

transformers' continuous batching keeps whole blocks of the keys and values of earlier requests.
A new request takes the blocks that hold the beginning of its prompt, and computes only the rest:
at least its last token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from detcheck.errors import MeasurementError, UsageError

FILLING_TOKENS = 2
"""Tokens of a request that fills the cache: its blocks are kept once it has its second token."""


class PrefixCount:
    """Counts the prompt tokens that requests take from a paged cache."""

    def __init__(self, cache: Any):
        self.tokens = 0
        self._match = cache.search_prefix_match
        cache.search_prefix_match = self._counted

    def _counted(self, *request: Any, **options: Any) -> int:
        found = int(self._match(*request, **options))
        self.tokens += found
        return found


def cached_part(prompt_tokens: int, block: int) -> int:
    """Tokens of a prompt in whole blocks, its last token left out: the most a cache can answer."""
    return (prompt_tokens - 1) // block * block


def check_prompts(lengths: Iterable[int], block: int) -> None:
    """Raise UsageError if a prompt (its length in tokens) has no whole block before its end."""
    for number, length in enumerate(lengths, start=1):
        if not cached_part(length, block):
            raise UsageError(
                f"Prompt {number} has {length} tokens, and a prefix cache keeps whole blocks of "
                f'{block}: ask one of more than {block} tokens, or leave `prefix_cache="warm"` out.'
            )


def check_sharing(cache: Any) -> None:
    """Raise UsageError if requests cannot share blocks of this paged cache."""
    if not cache.use_prefix_sharing:
        raise UsageError(
            "This model's layers share no blocks of the cache (in transformers only those with "
            'full attention do): leave `prefix_cache="warm"` out.'
        )


def check_found(found: int, expected: int) -> None:
    """Raise MeasurementError if requests took other prompt tokens from the cache than they should.

    A cold cache should give none: `expected` is 0 then.
    """
    if found and not expected:
        raise MeasurementError(
            f"Requests took {found} prompt tokens from a prefix cache that should be cold: leave "
            '`prefix_cache="cold"` out, and report this as a bug.'
        )
    if found != expected:
        raise MeasurementError(
            f"Requests took {found} prompt tokens from the prefix cache, not the {expected} that "
            'were asked before: lower `batch_sizes`, or leave `prefix_cache="warm"` out.'
        )
