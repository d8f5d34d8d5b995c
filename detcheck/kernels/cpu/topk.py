"""The largest or smallest entries on the CPU, the first of equal entries before the others.

The stock kernel chooses among equal entries by an algorithm that depends on the row's length. The
rows of a router have one length, and matrices keep the stock kernel. Rows of keys, in tensors of
three and more dims, have more entries if there is padding. They are sorted, and equal ones stay in
order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.stock import stock_kernel

_topk = stock_kernel("topk")


def topk(
    x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """aten::topk of a tensor of any shape: values and indices, in order also without `sorted`."""
    fits = x.dim() >= 3 and -x.dim() <= dim < x.dim() and 0 <= k <= x.shape[dim]
    if not fits:
        usual: tuple[torch.Tensor, torch.Tensor] = _topk(x, k, dim, largest, sorted)
        return usual
    values, indices = torch.sort(x, dim=dim, descending=largest, stable=True)
    return values.narrow(dim, 0, k).contiguous(), indices.narrow(dim, 0, k).contiguous()


KERNELS: dict[str, Callable[..., Any]] = {"topk": topk}
"""Overrides by aten op."""
