"""Why two answers part: rounding at a tie or near tie, or something that rounding cannot do.

At a flip the reference ranks token A over B by its gap g, another load ranks B over A by its own
gap h, so the load moved the difference of the two logits by g + h. Rounding can do that only where
g and h are of the size by which loads move such gaps anyway. That size, the noise, is measured in
the same run: each completion carries the largest change of its top-two gap against the reference
trace over the positions *before* it parts, so a flip never vouches for itself.

A group's noise is the median of these, over the completions that show any, times SAFETY:

- *Those that show any*: exact repeats and loads that round alike are bitwise equal and say nothing
  about how far rounding reaches. Where no completion shows noise, it is 0 and every flip with a
  gap is confident: nothing moved but the token.
- *Median*: a fault that corrupts some completions inflates their own values without bound, and up
  to half of them may be so without moving the median. A maximum or a high quantile would let the
  fault set the yardstick by which it is judged. The value of each completion is already a maximum,
  over some hundred positions, so the median is not too small.
- *SAFETY*: completions that part early are maxima over few positions; a flip happens where the
  change was large; and bfloat16 logits move in steps that grow with their size. Twice the median
  covers these, and a fault that picks another word is far beyond: gaps of nats, not of rounding.

Its limits: where the *only* completions with noise are the faulty ones (batch-invariant kernels
with a fault that builds up before it shows), or where the first completion, which the others are
measured against, is itself faulty, the fault sets the yardstick and the kind may read `near tie`.
Such a group has more than one variant all the same, and that is what a gate judges.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from detcheck.analysis.results import CONFIDENT, NEAR_TIE, TIE, UNKNOWN, Flip
from detcheck.rundir import StoredVariant

PART_OF_A_CHARACTER = "\ufffd"
"""What a token reads that holds only some bytes of a character: it names no token."""
SAFETY = 2.0
"""Multiple of the median noise within which a gap counts as a near tie."""


def group_noise(noise: npt.NDArray[np.float32]) -> float | None:
    """Noise of a group in nats, from that of its completions (NaN: not measured), (completions,).

    None where it was not measured at all; 0.0 where every completion was bitwise the reference.
    """
    measured = noise[np.isfinite(noise)]
    if not len(measured):
        return None
    moved = measured[measured > 0]
    return SAFETY * float(np.median(moved)) if len(moved) else 0.0


def judge(
    reference: StoredVariant, variant: StoredVariant, position: int, noise: float | None
) -> Flip:
    """Say what happened where `variant` leaves `reference`.

    `position` counts characters where they have no token ids. Where one of the two ended before
    it, the other's gap alone decides.
    """
    token = _token_at(reference, variant, position)
    reference_gap = _gap(reference, token)
    variant_gap = _gap(variant, token)
    return Flip(
        kind=_kind(reference_gap, variant_gap, noise),
        reference_gap=reference_gap,
        variant_gap=variant_gap,
        noise=noise,
        runner_up_won=_runner_up_won(reference, variant, token),
    )


def _kind(reference_gap: float | None, variant_gap: float | None, noise: float | None) -> str:
    gaps = [gap for gap in (reference_gap, variant_gap) if gap is not None]
    if 0.0 in gaps:
        return TIE
    if not gaps or noise is None:
        return UNKNOWN
    return NEAR_TIE if max(gaps) <= noise else CONFIDENT


def _token_at(reference: StoredVariant, variant: StoredVariant, position: int) -> int | None:
    """Index of the token at which the two part; None where their tokens are not known.

    Without ids the first token that ends elsewhere, or that holds the first other character: a
    token may begin before the characters in which it differs (` then` against ` the`).
    """
    if reference.token_ids is not None:
        return position
    if reference.token_ends is None or variant.token_ends is None:
        return None
    shared = min(len(reference.token_ends), len(variant.token_ends))
    ours, theirs = reference.token_ends[:shared], variant.token_ends[:shared]
    parted = np.flatnonzero((ours != theirs) | (ours > position))
    return int(parted[0]) if len(parted) else shared


def _gap(variant: StoredVariant, token: int | None) -> float | None:
    """Gap at `token`; None where there is no such token or its logits were not finite."""
    if token is None or variant.gaps is None or token >= len(variant.gaps):
        return None
    gap = float(variant.gaps[token])
    return gap if math.isfinite(gap) else None


def _runner_up_won(
    reference: StoredVariant, variant: StoredVariant, token: int | None
) -> bool | None:
    """By ids, else by text; None where neither is known, or text does not name the token."""
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
    if not chosen or PART_OF_A_CHARACTER in texts[token] + chosen:
        return None
    return chosen == texts[token]
