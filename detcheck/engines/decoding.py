"""From logits to ranked tokens, and from tokens to text with token boundaries.

Everything here computes each row on its own, in one order whatever the number of rows, so that
the harness adds no difference of its own to the engine it watches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from detcheck.completion import first_divergence

_LOG2_E = math.log2(math.e)
_BLOCK = 64
"""Logits are searched and summed in blocks of this many."""


@dataclass(frozen=True, slots=True)
class RankedTokens:
    """The best two tokens of each row; all tensors (rows,) on the CPU."""

    best: torch.Tensor
    runner_up: torch.Tensor
    gap: torch.Tensor
    """Best minus second-best score, float32, >= 0."""
    logprob: torch.Tensor
    """Log-probability of the best token, float32, in nats."""


def rank(scores: torch.Tensor) -> RankedTokens:
    """The best two of `scores` (rows, vocabulary), the lowest index first among equals.

    One pass over the scores finds the best of each block; the rest happens on the blocks.
    """
    blocks = _in_blocks(scores.float())
    best_of_block = blocks.amax(-1)
    best_value, best = _best(blocks, best_of_block)
    # exp2 takes a third of the time of exp, and this is most of what watching costs.
    powers = (blocks - best_value[:, None, None]).mul_(_LOG2_E).exp2_()
    total = powers.sum(-1).sum(-1)
    rows = torch.arange(len(best), device=scores.device)
    block, inside = best // _BLOCK, best % _BLOCK
    blocks[rows, block, inside] = -torch.inf
    best_of_block[rows, block] = blocks[rows, block].amax(-1)
    next_value, runner_up = _best(blocks, best_of_block)
    blocks[rows, block, inside] = best_value  # `blocks` may be a view of the caller's scores
    gap = best_value - next_value
    ranked = torch.stack((best.double(), runner_up.double(), gap.double(), -total.log().double()))
    best, runner_up, gap, logprob = ranked.cpu()  # one transfer
    return RankedTokens(best.long(), runner_up.long(), gap.float(), logprob.float())


def _in_blocks(scores: torch.Tensor) -> torch.Tensor:
    """(rows, vocabulary) as (rows, blocks, _BLOCK), the last block filled with -inf."""
    rows, vocabulary = scores.shape
    missing = -vocabulary % _BLOCK
    if missing:
        scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
    return scores.reshape(rows, -1, _BLOCK)


def _best(blocks: torch.Tensor, best_of_block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and index of the best score of each row; argmax takes the first among equals."""
    block = best_of_block.argmax(-1)
    rows = torch.arange(len(block), device=blocks.device)
    chosen = blocks[rows, block]
    inside = chosen.argmax(-1)
    return chosen[rows, inside], block * _BLOCK + inside


class Detokenizer:
    """Text of token ids, with the length of the text after each token. Remembers its results."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._decode = lru_cache(maxsize=4096)(self._decode_once)

    def __call__(self, token_ids: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """(text, its length after each token), special tokens left out.

        A token that ends within a character adds nothing; the token that completes it adds it.
        """
        return self._decode(token_ids)

    def _decode_once(self, token_ids: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        text = self._text(token_ids)
        lengths = self._by_prefixes(token_ids, text)
        if self._backend is not None:
            lengths = self._by_stream(token_ids)
        ends = [min(length, len(text)) for length in lengths]
        if ends:
            ends[-1] = len(text)
        return text, tuple(ends)

    def _text(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def _by_stream(self, token_ids: tuple[int, ...]) -> Iterator[int]:
        """Lengths from the stream decoder of the tokenizers library."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        length = 0
        for token_id in token_ids:
            length += len(stream.step(self._backend, token_id) or "")
            yield length

    def _by_prefixes(self, token_ids: tuple[int, ...], text: str) -> Iterator[int]:
        """The same for a tokenizer in pure Python: every prefix is decoded by itself."""
        length = 0
        for count in range(1, len(token_ids) + 1):
            shared = first_divergence(self._text(token_ids[:count]), text)
            length = max(length, len(text) if shared is None else shared)
            yield length
