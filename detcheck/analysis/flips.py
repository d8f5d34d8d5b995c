"""Why two branches of the prefix tree diverge: rounding at a tie or near tie, or a bug.

At a flip one branch ranks token A over B by its gap g, and under another load B is ranked over A by
a gap h: the load moved the difference of the two logits by g + h. Rounding can do that only if g
and h are of the size by which loads move such gaps anyway. `noise.py` measures that size in the
same run. Both gaps count: one gap of 0 does not explain another that is far beyond the noise.

    confident   a gap is beyond the noise: rounding cannot have done it
    tie         both are within the noise, and one of them is 0
    near tie    both are within the noise
    unknown     the gaps or the noise were not measured; two gaps of 0 are a tie without noise
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from detcheck.analysis.results import CONFIDENT, NEAR_TIE, TIE, UNKNOWN, Flip
from detcheck.rundir import Float32Array, StoredVariant

PART_OF_A_CHARACTER = "\ufffd"
"""The text of a token that holds only some bytes of a character: it does not name the token."""
BEYOND_ROUNDING = 2.0
"""A gap of more than so many times the noise shows a fault, however few completions have it."""
_NO_GAPS = np.empty(0, dtype=np.float32)
_NOWHERE = np.iinfo(np.int64).max


def judge(
    reference: StoredVariant, variant: StoredVariant, position: int, noise: float | None
) -> Flip:
    """Judge the divergence of `variant` from `reference` at `position`.

    `position` counts characters if the two have no token ids; `noise` is in nats, None if it was
    not measured. If one of the two ended before `position`, the gap of the other decides.
    """
    token = token_at(reference, variant, position)
    reference_gap = _gap(reference, token)
    variant_gap = _gap(variant, token)
    return Flip(
        kind=_kind(reference_gap, variant_gap, noise),
        reference_gap=reference_gap,
        variant_gap=variant_gap,
        noise=noise,
        runner_up_won=_runner_up_won(reference, variant, token),
    )


class FlipJudge:
    """Judges branches of one prompt's variants, each branch by the variants that take it.

    `variants` are as compared (all with token ids, or all without), most common first. `noise` is
    in nats; None if it was not measured.
    """

    def __init__(self, variants: Sequence[StoredVariant], noise: float | None):
        self._variants = variants
        self._noise = noise
        gaps = [_NO_GAPS if variant.gaps is None else variant.gaps for variant in variants]
        self._lengths = np.array([len(row) for row in gaps])
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._gaps = np.concatenate(gaps)

    def flip(self, common: Sequence[int], branch: Sequence[int], position: int) -> Flip:
        """Why `branch` diverges from `common` at unit `position`.

        Both are indices of the variants that take a branch, most common first.
        """
        reference = self._variants[self._representative(common, position)]
        variant = self._variants[self._representative(branch, position)]
        return judge(reference, variant, position, self._noise)

    def _representative(self, members: Sequence[int], position: int) -> int:
        """The variant whose gap stands for a branch: the most common one.

        But the one with the widest gap if that is more than BEYOND_ROUNDING times the noise, so
        that common answers do not hide a faulty one.
        """
        if self._noise is None or len(members) == 1:
            return members[0]
        widths = self._widths(np.asarray(members), position)
        widest = int(widths.argmax())
        return members[widest if widths[widest] > BEYOND_ROUNDING * self._noise else 0]

    def _widths(self, members: npt.NDArray[np.int64], position: int) -> Float32Array:
        """Gap of each member at `position`; 0 if it is not known. (members,)"""
        tokens = np.full(len(members), position)
        if self._variants[members[0]].token_ids is None:
            variants = [self._variants[index] for index in members.tolist()]
            found = [token_at(variant, variant, position) for variant in variants]
            tokens = np.array([_NOWHERE if token is None else token for token in found])
        known = tokens < self._lengths[members]
        widths = np.zeros(len(members), dtype=np.float32)
        widths[known] = self._gaps[self._starts[members[known]] + tokens[known]]
        return np.where(np.isfinite(widths), widths, np.float32(0))


def token_at(reference: StoredVariant, variant: StoredVariant, position: int) -> int | None:
    """Index of the token that holds unit `position`, at which the two diverge.

    None if their tokens are not known. Without ids it is the first token that ends elsewhere, or
    that holds character `position`: a token may begin before the characters in which it differs
    (` then` against ` the`).
    """
    if reference.token_ids is not None:
        return position
    if reference.token_ends is None or variant.token_ends is None:
        return None
    shared = min(len(reference.token_ends), len(variant.token_ends))
    ours, theirs = reference.token_ends[:shared], variant.token_ends[:shared]
    differ = np.flatnonzero((ours != theirs) | (ours > position))
    return int(differ[0]) if len(differ) else shared


def _kind(reference_gap: float | None, variant_gap: float | None, noise: float | None) -> str:
    gaps = [gap for gap in (reference_gap, variant_gap) if gap is not None]
    if gaps == [0.0, 0.0]:
        return TIE
    if not gaps or noise is None:
        return UNKNOWN
    if max(gaps) > noise:
        return CONFIDENT
    return TIE if 0.0 in gaps else NEAR_TIE


def _gap(variant: StoredVariant, token: int | None) -> float | None:
    """Gap at `token`; None if there is no such token or its logits were not finite."""
    if token is None or variant.gaps is None or token >= len(variant.gaps):
        return None
    gap = float(variant.gaps[token])
    return gap if math.isfinite(gap) else None


def _runner_up_won(
    reference: StoredVariant, variant: StoredVariant, token: int | None
) -> bool | None:
    """By ids, else by text; None if neither is known or the text does not name the token."""
    if token is None:
        return None
    runners_up, token_ids = reference.runner_up_token_ids, variant.token_ids
    if runners_up is not None and token_ids is not None:
        if token >= min(len(runners_up), len(token_ids)):
            return None
        return bool(token_ids[token] == runners_up[token])
    texts, ends = reference.runner_up_texts, variant.token_ends
    if texts is None or ends is None or token >= min(len(texts), len(ends)):
        return None
    chosen = variant.text[int(ends[token - 1]) if token else 0 : int(ends[token])]
    runner_up = texts[token]
    if not chosen or not runner_up or PART_OF_A_CHARACTER in runner_up + chosen:
        return None
    return chosen == runner_up
