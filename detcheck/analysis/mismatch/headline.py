"""The headline of a measurement: which link carries the gap, for each kernels setting."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detcheck.analysis.mismatch.results import (
    LAYOUT_DTYPE,
    LINK_NAMES,
    LINKS,
    RECORDED_DECODE,
    WHOLE,
    MismatchRow,
    NamedFault,
)
from detcheck.text import count


def headline_of(rows: Sequence[MismatchRow], faults: Sequence[NamedFault]) -> str:
    """One sentence for each kernels setting; a named fault follows."""
    settings = dict.fromkeys(row.kernels for row in rows)
    return " ".join(_sentence(kernels, rows, faults) for kernels in settings)


def carrier(whole: MismatchRow, rows: Sequence[MismatchRow]) -> MismatchRow | None:
    """The link with the largest mean gap in the chain of `whole`; None if every link is zero."""
    largest = max(chain_of(whole, rows), key=_gap, default=None)
    return largest if largest is not None and _gap(largest) > 0 else None


def _gap(row: MismatchRow) -> float:
    """The mean gap; one that is no number, since a side overflowed, counts as the largest."""
    return math.inf if math.isnan(row.mean_abs) else row.mean_abs


def chain_of(whole: MismatchRow, rows: Sequence[MismatchRow]) -> list[MismatchRow]:
    """The links that lead to `whole`, in order."""
    chain = [row for row in rows if row.link != WHOLE and _in_chain(row, whole)]
    return sorted(chain, key=lambda row: LINKS.index(row.link))


def _in_chain(row: MismatchRow, whole: MismatchRow) -> bool:
    if row.kernels != whole.kernels:
        return False
    layout = row.trainer_layout in (None, whole.trainer_layout)
    # The layout is compared in the sampler's dtype, so its row belongs to every dtype's chain.
    dtype = row.link != LAYOUT_DTYPE or row.trainer_dtype == whole.trainer_dtype
    return layout and dtype


def _sentence(kernels: str, rows: Sequence[MismatchRow], faults: Sequence[NamedFault]) -> str:
    wholes = [row for row in rows if row.kernels == kernels and row.link == WHOLE]
    if not wholes:
        return f"{kernels}: the gap could not be measured."
    worst = max(wholes, key=_gap)
    if worst.mean_abs == 0:
        layouts = ", ".join(dict.fromkeys(str(row.trainer_layout) for row in wholes))
        return (
            f"{kernels}: no gap, all of {count(worst.tokens, 'token')} are bitwise equal "
            f"({layouts})."
        )
    found = carrier(worst, rows)
    where = LINK_NAMES[found.link if found is not None else WHOLE]
    own = found if found is not None else worst
    arm = ", ".join(part for part in (worst.trainer_layout, worst.trainer_dtype) if part)
    sentence = (
        f"{kernels}: {where} carries the gap, mean |r| {own.mean_abs:.2g}; the whole gap is "
        f"{worst.mean_abs:.2g}, K3 {worst.k3:.2g} ({arm})"
    )
    named = next((each for each in faults if each.kernels == kernels), None)
    if named is None:
        return f"{sentence}."
    joint = ": " if own.link in (RECORDED_DECODE, WHOLE) else "; besides, "
    return f"{sentence}{joint}{named.sentence}."
