"""Where answers part: the first unit (token, or character without tokens) that differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from detcheck.analysis.flips import judge
from detcheck.analysis.results import Divergence
from detcheck.rundir import StoredVariant
from detcheck.text import quoted

CONTEXT_TOKENS = 8
PIECE_TOKENS = 6
CHARACTERS_PER_TOKEN = 5
"""How much text stands for a token where a server gave none."""

Units = npt.NDArray[np.int32]


def units(variant: StoredVariant) -> Units:
    """What is compared: token ids, or the code points of the text; (units,) int32."""
    if variant.token_ids is not None:
        return variant.token_ids
    return np.frombuffer(variant.text.encode("utf-32-le", "surrogatepass"), dtype="<i4")


def comparable(variants: Sequence[StoredVariant]) -> list[StoredVariant]:
    """The variants, all with tokens or all without.

    A server that gave token ids only now and then leaves nothing but text to compare.
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
    """Index at which `a` and `b` part; a strict prefix parts at its own length; None: equal."""
    shared = min(len(a), len(b))
    differ = a[:shared] != b[:shared]
    index = int(differ.argmax()) if shared else 0
    if shared and differ[index]:
        return index
    return None if len(a) == len(b) else shared


def describe(
    reference: StoredVariant,
    variant: StoredVariant,
    *,
    stored: StoredVariant,
    count: int,
    position: int,
    noise: float | None,
) -> Divergence:
    """Say where and how `variant` (as compared; as stored: `stored`) leaves the reference."""
    scale = 1 if reference.token_ids is not None else CHARACTERS_PER_TOKEN
    stop = position + PIECE_TOKENS * scale
    return Divergence(
        variant=stored,
        count=count,
        position=position,
        context=reference.piece(max(0, position - CONTEXT_TOKENS * scale), position),
        reference_piece=reference.piece(position, stop),
        piece=variant.piece(position, stop),
        flip=judge(reference, variant, position, noise),
    )


def two_ways(context: str, left: str, right: str) -> str:
    """How two answers go on: `, after "a small": "coastal town" / ", coastal town"`."""
    after = f", after {quoted(context)}" if context else ""
    ways = (quoted(piece) if piece else "the end" for piece in (left, right))
    return f"{after}: {' / '.join(ways)}"
