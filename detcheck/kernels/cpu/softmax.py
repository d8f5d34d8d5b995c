"""Batch-invariant softmax on the CPU.

Along the last dim the stock kernels give each row to one thread, in one order: nothing to mend,
nor in log_softmax. Along another dim softmax takes several columns at a time as vectors and the
rest one by one, which rounds differently: that dim is brought to the end first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.stock import stock_kernel

_stock_softmax = stock_kernel("_softmax")


def softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    """aten::_softmax of x along `dim`, any shape; float32, float64, bfloat16, float16."""
    if x.dim() < 2 or dim % x.dim() == x.dim() - 1:
        return _stock_softmax(x, dim, half_to_float)
    rows = x.transpose(dim, -1).contiguous()
    return _stock_softmax(rows, -1, half_to_float).transpose(dim, -1).contiguous()


KERNELS: dict[str, Callable[..., Any]] = {"_softmax": softmax}
"""Overrides by aten op."""
