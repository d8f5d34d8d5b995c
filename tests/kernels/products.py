"""Operands that show an order of summation, and the check that tests of products share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def cancelling(rows: int, inner: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Left-hand side (rows, inner) and weight (columns, inner) whose products cancel in pairs.

    So a different order of summation shows, even after rounding to bfloat16.
    """
    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(inner, generator=generator)
    first, second = order[: inner // 2], order[inner // 2 : inner // 2 * 2]
    left = torch.randn(rows, inner, generator=generator)
    weight = torch.randn(columns, inner, generator=generator)
    left[:, second] = left[:, first] * (1 + torch.randn(rows, inner // 2, generator=generator) / 99)
    weight[:, second] = -weight[:, first]
    return left.to(dtype), weight.to(dtype)


def rows_that_differ(
    left: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sizes: Sequence[int]
) -> int:
    """Rows of smaller batches, from either end, that are not bitwise those of the whole batch."""
    whole = F.linear(left, weight, bias)
    differ = 0
    for rows in sizes:
        for start in {0, len(left) - rows}:
            part = F.linear(left[start : start + rows], weight, bias)
            differ += int((part != whole[start : start + rows]).any(-1).sum())
    return differ
