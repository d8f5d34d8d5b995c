"""Cuts one request's part out of a tensor of a whole batch."""

from __future__ import annotations

import torch

from detcheck.engines.passes import Extent

Shape = tuple[int, ...]


def cut(x: torch.Tensor, alone: Shape, extents: tuple[Extent, ...]) -> torch.Tensor | None:
    """The request's part of `x`, given its shape `alone`; None if the part cannot be identified."""
    if x.dim() == len(alone) and tuple(x.shape) != alone:
        part: torch.Tensor | None = x
        for dim, (whole, own) in enumerate(zip(x.shape, alone, strict=True)):
            if part is not None and whole != own:
                part = _narrow(part, dim, whole, own, extents)
        if part is not None:
            return part
    return _cut_any(x, alone, extents)


def _narrow(
    x: torch.Tensor, dim: int, whole: int, own: int, extents: tuple[Extent, ...]
) -> torch.Tensor | None:
    for extent in extents:
        if (extent.own, extent.whole) == (own, whole):
            return x.narrow(dim, extent.start, own)
    return None


def _cut_any(x: torch.Tensor, alone: Shape, extents: tuple[Extent, ...]) -> torch.Tensor | None:
    """By size: one request alone may have another layout (heads in the place of queries)."""
    if tuple(x.shape) == alone:
        return None
    size = 1
    for length in alone:
        size *= length
    for dim in (*range(x.dim() - 2, -1, -1), x.dim() - 1):
        for extent in extents:
            if (
                0 <= dim < x.dim()
                and extent.whole == x.shape[dim] != extent.own
                and x.numel() // extent.whole * extent.own == size
            ):
                return x.narrow(dim, extent.start, extent.own)
    return None
