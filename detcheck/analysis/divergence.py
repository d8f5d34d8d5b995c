"""Where answers diverge: the first unit (token, or character without tokens) that differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from detcheck.analysis.flips import FlipJudge
from detcheck.analysis.results import Divergence, Flip, VariantCount
from detcheck.rundir import StoredVariant
from detcheck.text import quoted, quoted_end

CONTEXT_TOKENS = 8
PIECE_TOKENS = 6
CHARACTERS_PER_TOKEN = 5
"""How much text stands for a token if a server gave no tokens."""

_NEVER = np.iinfo(np.int64).max

Units = npt.NDArray[np.int32]


def units(variant: StoredVariant) -> Units:
    """The compared units: token ids, or else the code points of the text; (units,) int32."""
    if variant.token_ids is not None:
        return variant.token_ids
    return np.frombuffer(variant.text.encode("utf-32-le", "surrogatepass"), dtype="<i4")


def comparable(variants: Sequence[StoredVariant]) -> list[StoredVariant]:
    """The variants, all with tokens or all without.

    If a server gave token ids only now and then, only the text can be compared.
    """
    if len({variant.token_ids is None for variant in variants}) < 2:
        return list(variants)
    return [
        replace(
            variant,
            token_ids=None,
            token_ends=None,
            runner_up_token_ids=None,
            runner_up_texts=None,
            gaps=None,
        )
        for variant in variants
    ]


def first_difference(a: Units, b: Units) -> int | None:
    """Index of the first unit that differs; a strict prefix differs at its own length.

    None if `a` and `b` are equal.
    """
    shared = min(len(a), len(b))
    differ = a[:shared] != b[:shared]
    index = int(differ.argmax()) if shared else 0
    if shared and differ[index]:
        return index
    return None if len(a) == len(b) else shared


def words_before(variant: StoredVariant, position: int) -> str:
    """Text of the few tokens of `variant` before unit `position`."""
    return variant.piece(max(0, position - CONTEXT_TOKENS * _scale(variant)), position)


def next_words(variant: StoredVariant, position: int) -> str:
    """Text of the few tokens of `variant` from unit `position` on; empty if it ends there."""
    return variant.piece(position, position + PIECE_TOKENS * _scale(variant))


def _scale(variant: StoredVariant) -> int:
    """Units that stand for one token."""
    return 1 if variant.token_ids is not None else CHARACTERS_PER_TOKEN


def divergences(
    variants: Sequence[VariantCount], noise: float | None, seed: int = 0
) -> tuple[Divergence, ...]:
    """Place and kind of each variant's divergence from the reference, in the order of `variants`.

    `variants` are those of one seed, most common first; one of them is the reference. `noise` is in
    nats, None if it was not measured.
    """
    compared = comparable([counted.variant for counted in variants])
    judge = FlipJudge(compared, noise)
    reference = next(index for index, counted in enumerate(variants) if counted.is_reference)
    flips: dict[int, Flip] = {}
    for position, staying, leaving in _branches(variants, compared):
        flips |= dict.fromkeys(leaving, judge.flip(staying, leaving, position))
    return tuple(
        _describe(compared[reference], compared[index], counted, flips[index], seed)
        for index, counted in enumerate(variants)
        if index in flips
    )


def _branches(
    variants: Sequence[VariantCount], compared: Sequence[StoredVariant]
) -> Iterator[tuple[int, list[int], list[int]]]:
    """Each branch that leaves the reference: (position, variants that stay, those that leave)."""
    at = np.array([_NEVER if v.first_divergence is None else v.first_divergence for v in variants])
    for position in np.unique(at[at < _NEVER]).tolist():
        staying = np.flatnonzero(at > position).tolist()
        by_unit: dict[int | None, list[int]] = {}
        for index in np.flatnonzero(at == position).tolist():
            own = units(compared[index])
            unit = int(own[position]) if position < len(own) else None
            by_unit.setdefault(unit, []).append(index)
        for leaving in by_unit.values():
            yield position, staying, leaving


def _describe(
    reference: StoredVariant, variant: StoredVariant, counted: VariantCount, flip: Flip, seed: int
) -> Divergence:
    position = counted.first_divergence
    assert position is not None, "only variants that leave the reference are described"
    return Divergence(
        variant=counted.variant,
        count=counted.count,
        position=position,
        context=words_before(reference, position),
        reference_piece=next_words(reference, position),
        piece=next_words(variant, position),
        flip=flip,
        seed=seed,
    )


def two_ways(context: str, left: str, right: str) -> str:
    """How two answers go on: `, after "a small": "coastal town" / ", coastal town"`."""
    after = f", after {quoted_end(context)}" if context else ""
    ways = (quoted(piece) if piece else "the end" for piece in (left, right))
    return f"{after}: {' / '.join(ways)}"
