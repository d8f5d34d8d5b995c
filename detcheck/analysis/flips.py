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

    Where one of the two ended before `position`, the other's gap alone decides.
    """
    reference_gap = _gap(reference, position)
    variant_gap = _gap(variant, position)
    return Flip(
        kind=_kind(reference_gap, variant_gap, noise),
        reference_gap=reference_gap,
        variant_gap=variant_gap,
        noise=noise,
        runner_up_won=_runner_up_won(reference, variant, position),
    )


def _kind(reference_gap: float | None, variant_gap: float | None, noise: float | None) -> str:
    gaps = [gap for gap in (reference_gap, variant_gap) if gap is not None]
    if 0.0 in gaps:
        return TIE
    if not gaps or noise is None:
        return UNKNOWN
    return NEAR_TIE if max(gaps) <= noise else CONFIDENT


def _gap(variant: StoredVariant, position: int) -> float | None:
    """Gap at `position`; None where there is no such token or its logits were not finite."""
    if variant.token_ids is None or variant.gaps is None or position >= len(variant.gaps):
        return None
    gap = float(variant.gaps[position])
    return gap if math.isfinite(gap) else None


def _runner_up_won(reference: StoredVariant, variant: StoredVariant, position: int) -> bool | None:
    runners_up, token_ids = reference.runner_up_token_ids, variant.token_ids
    if runners_up is None or token_ids is None:
        return None
    if position >= min(len(runners_up), len(token_ids)):
        return None
    return bool(token_ids[position] == runners_up[position])
