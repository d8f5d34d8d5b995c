"""Batch-invariant softmax and log-softmax on the CPU.

Along the last dim the stock kernels give each row to one thread, in one order. Along another dim
they take several columns at a time as vectors and the rest one by one, which rounds differently:
so that dim is brought to the end first.

Tensors of three and more dims are attention's weights, whose last dim is keys. The number of masked
keys must not change them, so their sums run in order (`in_order.py`). Tensors of one and two dims,
such as logits over a vocabulary, keep the stock kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.in_order import softmax as softmax_in_order
from detcheck.kernels.cpu.stock import stock_kernel


def along_last(op: str) -> Callable[..., Any]:
    """The op `op` (x, dim, half_to_float), always along a last dim; x of any shape and layout."""
    stock = stock_kernel(op)

    def normalise(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
        if x.dim() < 2 or dim in (-1, x.dim() - 1) or not -x.dim() <= dim < x.dim():
            usual: torch.Tensor = stock(x, dim, half_to_float)
            return usual
        rows = x.transpose(dim, -1).contiguous()
        result: torch.Tensor = stock(rows, -1, half_to_float)
        return result.transpose(dim, -1).contiguous()

    return normalise


_usual_softmax = along_last("_softmax")


def softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    """aten::_softmax of a tensor of any shape and layout."""
    fits = -x.dim() <= dim < x.dim() and x.is_floating_point() and x.numel() > 0
    if x.dim() < 3 or half_to_float or not fits:
        usual: torch.Tensor = _usual_softmax(x, dim, half_to_float)
        return usual
    if dim in (-1, x.dim() - 1):
        return softmax_in_order(x)
    return softmax_in_order(x.transpose(dim, -1)).transpose(dim, -1).contiguous()


KERNELS: dict[str, Callable[..., Any]] = {
    "_softmax": softmax,
    "_log_softmax": along_last("_log_softmax"),
}
"""Overrides by aten op."""
