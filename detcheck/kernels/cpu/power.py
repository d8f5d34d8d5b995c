"""Powers with exponents in a tensor on the CPU: every entry goes through the vector kernel.

Powers of a tensor by one number (`x ** 2`) are not overridden: see `EVEN_POWERS` in `op_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.pointwise import as_whole_vectors
from detcheck.kernels.cpu.stock import stock_kernel

_power = stock_kernel("pow.Tensor_Tensor")
_power_of_number = stock_kernel("pow.Scalar")


def power(base: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """aten::pow.Tensor_Tensor of tensors that can be broadcast together."""
    dtype = torch.result_type(base, exponent)
    if not dtype.is_floating_point:
        result: torch.Tensor = _power(base, exponent)
        return result
    both = torch.broadcast_tensors(base.to(dtype), exponent.to(dtype))
    return as_whole_vectors(_power, *both)


def power_of_number(base: Any, exponent: torch.Tensor) -> torch.Tensor:
    """aten::pow.Scalar: one number to each exponent of a tensor."""
    if not exponent.is_floating_point():
        result: torch.Tensor = _power_of_number(base, exponent)
        return result
    return as_whole_vectors(lambda padded: _power_of_number(base, padded), exponent)


KERNELS: dict[str, Callable[..., Any]] = {
    "pow.Tensor_Tensor": power,
    "pow.Scalar": power_of_number,
}
"""Overrides by aten op."""
