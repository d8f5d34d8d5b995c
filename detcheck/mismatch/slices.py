"""The whole gap by position and by kind of token, and the tokens for pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from detcheck.analysis.mismatch.measures import Floats, measure
from detcheck.analysis.mismatch.results import MismatchSlice, MismatchTokens
from detcheck.mismatch.chain import Chain

HIGH_ENTROPY = 0.8
"""Tokens above this quantile of the entropy are of the kind `high`."""
MOST_TOKENS = 2000
"""Tokens of one comparison that are kept for pictures."""
_FIRST_BOUNDS = (0, 1, 4, 16)


def slices_of(chain: Chain, dtypes: Sequence[str]) -> Iterator[MismatchSlice]:
    """The slices of every whole gap of a chain with a trainer in one of `dtypes`."""
    positions = np.concatenate([np.array(each.places) for each in chain.rollouts])
    recorded = np.concatenate(chain.recorded)
    kinds: list[tuple[str, str, NDArray[np.bool_]]] = [
        ("position", name, (positions >= start) & (positions < stop))
        for name, start, stop in _bounds(int(positions.max()))
    ]
    if chain.decoded is not None:
        entropy = np.concatenate(chain.meanings.entropy)
        high = entropy > np.quantile(entropy, HIGH_ENTROPY)
        kinds += [("entropy", "high", high), ("entropy", "low", ~high)]
    for (layout, dtype), scored in chain.trained.items():
        trainer = np.concatenate(scored)
        for by, name, chosen in kinds:
            if dtype in dtypes and chosen.any():
                found = measure([recorded[chosen]], [trainer[chosen]], resamples=0)
                yield MismatchSlice(
                    kernels=chain.kernels,
                    trainer_layout=layout,
                    trainer_dtype=dtype,
                    by=by,
                    name=name,
                    tokens=found.tokens,
                    k3=found.k3,
                    mean_abs=found.mean_abs,
                    max_abs=found.max_abs,
                    bitwise_tokens=found.bitwise_tokens,
                )


def _bounds(last: int) -> Iterator[tuple[str, int, int]]:
    """(name, first position, end) of the slices by position: each four times the one before."""
    start = 0
    ends = [*_FIRST_BOUNDS[1:]]
    while ends[-1] <= last:
        ends.append(4 * ends[-1])
    for end in ends:
        name = str(start) if end == start + 1 else f"{start}–{min(end, last + 1) - 1}"
        yield name, start, end
        start = end


def tokens_of(chain: Chain, dtypes: Sequence[str]) -> MismatchTokens | None:
    """Tokens of the first whole gap with a trainer in one of `dtypes`, at most `MOST_TOKENS`."""
    for (layout, dtype), scored in chain.trained.items():
        if dtype not in dtypes:
            continue
        positions = np.concatenate([np.array(each.places) for each in chain.rollouts])
        step = -(-len(positions) // MOST_TOKENS)
        return MismatchTokens(
            kernels=chain.kernels,
            trainer_layout=layout,
            trainer_dtype=dtype,
            positions=tuple(positions[::step].tolist()),
            sampler=_every(chain.recorded, step),
            trainer=_every(scored, step),
        )
    return None


def _every(logprobs: Sequence[Floats], step: int) -> tuple[float, ...]:
    return tuple(np.concatenate(logprobs)[::step].tolist())
