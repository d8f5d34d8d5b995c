"""The check that an op works entry by entry and rounds each entry alike, wherever it is."""

from __future__ import annotations

from collections.abc import Callable

import torch


def rounds_alike(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """True if each entry of (4099,) has the same bits in whole, in parts, strided, and repeated."""
    whole = function(x.clone())
    parts = [(function(x[start : start + 7]), whole[start : start + 7]) for start in range(0, 99)]
    spread = function(torch.stack((x, x), 1)[:, 0])
    long = function(x.repeat(23)).view(23, -1)
    same = [*parts, (spread, whole), *((row, whole) for row in long)]
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in same)
