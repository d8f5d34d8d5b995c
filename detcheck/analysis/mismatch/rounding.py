"""Whether recorded log-probabilities were rounded before they reached us, and to how many bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FLOAT32_BITS = 24
MIN_VALUES = 16
"""Fewer values may look rounded by chance."""
_MOST_BITS = 18
"""Values of more significant bits are taken as they were computed."""
_DECIMALS = range(1, 6)
_NAMES = {8: " (bfloat16)", 11: " (float16)"}


@dataclass(frozen=True, slots=True)
class Rounding:
    """The precision of rounded values."""

    bits: int
    """Significant bits that the largest values have."""
    unit: float
    """The most that rounding, or cutting digits off, can have changed a value, in nats."""
    decimals: int | None = None
    """Digits after the decimal point, if they were rounded to a number of them."""

    @property
    def sentence(self) -> str:
        """The finding and its consequence."""
        how = f"{self.bits} bits{_NAMES.get(self.bits, '')}"
        if self.decimals is not None:
            how = f"{self.decimals} decimals, about {self.bits} bits"
        return f"the sampler's log-probabilities are rounded to {how} of float32's {FLOAT32_BITS}"


def rounding_of(logprobs: Sequence[NDArray[np.floating]]) -> Rounding | None:
    """The rounding that all values of `logprobs` share; None if they look as computed.

    Zeros are left out: a certain token has log-probability 0 at any precision.
    """
    values = np.concatenate([np.asarray(each, np.float64) for each in logprobs])
    values = values[np.isfinite(values) & (values != 0)]
    if len(values) < MIN_VALUES:
        return None
    mantissas = np.frexp(values.astype(np.float32))[0].astype(np.float64) * 2**FLOAT32_BITS
    used = FLOAT32_BITS - _trailing_zeros(mantissas.astype(np.int64))
    if (bits := int(used.max())) <= _MOST_BITS:
        return Rounding(bits, 2.0 ** (int(np.frexp(np.abs(values).max())[1]) - bits))
    for decimals in _DECIMALS:
        scaled = values * 10.0**decimals
        if (np.abs(scaled - np.round(scaled)) <= np.abs(scaled) * 2.0**-22 + 1e-9).all():
            largest = max(1.0, float(np.abs(scaled).max()))
            return Rounding(int(np.ceil(np.log2(largest))), 10.0**-decimals, decimals)
    return None


def _trailing_zeros(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    lowest = np.abs(numbers) & -np.abs(numbers)
    return np.asarray(np.log2(lowest.astype(np.float64)), np.int64)
