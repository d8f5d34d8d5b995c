"""Batch-invariant convolutions on the CPU: one stock call per sample.

oneDNN chooses a kernel by the shape of the whole batch. A sample by itself, in memory of its own,
always has the same shape and alignment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.stock import stock_kernel

_stock = stock_kernel("convolution")


def convolution(x: torch.Tensor, *args: Any) -> torch.Tensor:
    """aten::convolution of x (batch, channels, …); the other arguments are those of the op."""
    if not len(x):
        result: torch.Tensor = _stock(x, *args)
        return result
    return torch.cat([_stock(sample.clone(), *args) for sample in x.split(1)])


KERNELS: dict[str, Callable[..., Any]] = {"convolution": convolution}
"""Overrides by aten op."""
