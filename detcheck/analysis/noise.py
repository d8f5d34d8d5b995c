"""By how much loads move the gap between the two best logits, measured in the run itself.

The run directory holds, for each completion, the largest change of this gap against the first
completion of its prompt, kernels and seed, over the positions *before* the two diverge. So the
change at a flip is not part of the noise by which it is judged. The noise of a kernels setting is
the median of these changes over all its prompts, seeds and conditions, times SAFETY.

Which completions count:

- Only completions under another load than the first one's. An exact repeat of that load must be
  bitwise equal: its change of 0 says nothing about how far rounding reaches.
- Of these, only completions with any change, if there are some: loads that happen to round alike
  are bitwise equal. If no load changed any gap, the noise is 0, and a flip with a gap is confident.

Why the median: a fault that corrupts some completions makes their changes as large as it likes, and
up to half of the completions may be faulty without moving the median. A maximum or a high quantile
would let the fault set its own limit. Each change is already a maximum over many positions, so
the median is not too small.

Why SAFETY: completions that diverge early are maxima over few positions, a flip happens at a
position whose change was large, and bfloat16 logits move in steps that grow with their size.

If completions could be compared at fewer than MIN_POSITIONS token positions, the noise was not
measured. It is then unknown, not 0: for example, if every answer under load diverges at token 0. A
noise of 0 holds only for prompts that were compared at so many positions themselves.

The limits: if the *only* completions with a change are faulty, or if the first completion is itself
faulty, the fault sets the limit and a flip may read `near tie`. Such a group has more than one
variant all the same, and that is what a gate judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detcheck.analysis.divergence import comparable, first_difference, units
from detcheck.analysis.flips import token_at
from detcheck.analysis.loads import same_load
from detcheck.analysis.variants import IntArray
from detcheck.rundir import Run

SAFETY = 2.0
"""Multiple of the median change within which a gap counts as a near tie."""
MIN_POSITIONS = 4
"""Fewer token positions than this are no measurement: a change of 0 there may be chance."""


@dataclass(frozen=True, slots=True)
class NoiseSample:
    """The sample of the noise that the completions of one prompt give."""

    changes: npt.NDArray[np.float32]
    """Largest change of the gap in each completion under another load, in nats; (completions,)."""
    positions: int
    """Token positions at which some of them could be compared."""


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one kernels setting, pooled over its prompts and conditions."""

    gap: float | None
    """In nats; None if it was not measured, 0.0 if no load changed any gap."""
    positions: int
    """Token positions at which it could be seen, summed over prompts."""


def pooled(samples: Iterable[NoiseSample]) -> Noise:
    """The noise of all these samples together."""
    listed = list(samples)
    positions = sum(sample.positions for sample in listed)
    if positions < MIN_POSITIONS:
        return Noise(None, positions)
    changes = np.concatenate([sample.changes for sample in listed])
    moved = changes[changes > 0]
    return Noise(SAFETY * float(np.median(moved)) if len(moved) else 0.0, positions)


def noise_sample(run: Run, rows: IntArray) -> NoiseSample:
    """The sample of one prompt, kernels setting and seed; `rows` are its completions."""
    table = run.completions
    with_logprobs = rows[(table.variant[rows] >= 0) & (table.digest[rows] >= 0)]
    if not len(with_logprobs):
        return NoiseSample(np.empty(0, dtype=np.float32), 0)
    first = int(with_logprobs.min())  # the completion that all changes are measured against
    changes = table.noise[with_logprobs]  # NaN if there was nothing before the divergence
    counts = np.isfinite(changes) & (~same_load(run, with_logprobs, first) | (changes > 0))
    variants = np.unique(table.variant[with_logprobs[counts]]).tolist()
    return NoiseSample(changes[counts], _positions(run, int(table.variant[first]), variants))


def _positions(run: Run, first: int, variants: Sequence[int]) -> int:
    """Tokens that variant `first` shares with the one among `variants` that leaves it last."""
    most = 0
    for index in variants:
        reference, variant = comparable([run.variants[first], run.variants[index]])
        divergence = first_difference(units(reference), units(variant))
        if divergence is None:
            return _num_tokens(run, first)
        most = max(most, token_at(reference, variant, divergence) or 0)
    return most


def _num_tokens(run: Run, index: int) -> int:
    ends = run.variants[index].token_ends
    return len(run.variants[index]) if ends is None else len(ends)
