"""The factors of `addmm` and its relatives: beta * added + alpha * product."""

from __future__ import annotations

from typing import TypedDict, Unpack

import torch


class Scales(TypedDict, total=False):
    """Factors of a sum: `beta` of the added tensor, `alpha` of the product; 1 if not given."""

    beta: float
    alpha: float


def scaled(scales: Scales) -> bool:
    """True if a factor is not 1."""
    return scales.get("beta", 1) != 1 or scales.get("alpha", 1) != 1


def scaled_sum(
    added: torch.Tensor, product: torch.Tensor, **scales: Unpack[Scales]
) -> torch.Tensor:
    """beta * added + alpha * product; `added` is not read if beta is 0."""
    beta, alpha = scales.get("beta", 1), scales.get("alpha", 1)
    result = product if alpha == 1 else product * alpha
    if beta == 0:
        return result
    return result + (added if beta == 1 else added * beta)
