"""Tensors compared bit for bit: rows that differ, and by how many units in the last place."""

from __future__ import annotations

import torch

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer dtype of as many bytes."""


def ulps(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Distance of two tensors of one shape and dtype, element by element, int64.

    For floats, the number of representable values between the two, 0 only if the bits are equal.
    The two zeros have distance 1, and a NaN is far from every number. For integers and booleans,
    the absolute difference. Capped at the largest int64.
    """
    if left.is_complex():
        left, right = (torch.view_as_real(x.resolve_conj()) for x in (left, right))
    distance = _on_a_line(left) - _on_a_line(right)
    if distance.dtype == torch.int64 and left.element_size() == 8:
        wrapped = (distance < 0) != (_on_a_line(left) < _on_a_line(right))
        distance = distance.abs().masked_fill(wrapped, torch.iinfo(torch.int64).max)
    return distance.abs().clamp_min(0)


def _on_a_line(x: torch.Tensor) -> torch.Tensor:
    """int64 in the order of the values; adjacent values have distance 1."""
    if not x.is_floating_point():
        return x.to(torch.int64)
    bits = x.contiguous().view(_INTEGERS[x.element_size()])
    # The bits of negative floats grow with the magnitude: inverted, -0.0 comes just below 0.0.
    return torch.where(bits >= 0, bits, bits ^ torch.iinfo(bits.dtype).max).to(torch.int64)


def row_ulps(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The largest distance within each row, (rows,) int64; 0 if the row's bits are equal."""
    if _same_bits(left, right):
        return torch.zeros(left.shape[0], dtype=torch.int64, device=left.device)
    return ulps(left, right).reshape(left.shape[0], -1).amax(-1)


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """True if all bits are equal, without distances; always False for complex tensors."""
    if left.is_complex():
        return False
    if not left.is_floating_point():
        return torch.equal(left, right)
    integer = _INTEGERS[left.element_size()]
    return torch.equal(left.contiguous().view(integer), right.contiguous().view(integer))
