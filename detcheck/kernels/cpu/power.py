"""Powers on the CPU: every entry goes through the vector kernel, unless the two kernels agree.

`x ** 2` in every normalisation must cost nothing. So powers by a number are not overridden in the
dispatcher: `pow` and `**` look at the number first, and take the in-place op for uneven powers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from detcheck.kernels.cpu.pointwise import as_whole_vectors, in_place, into_out
from detcheck.kernels.cpu.stock import stock_kernel

_power = stock_kernel("pow.Tensor_Tensor")
_power_of_number = stock_kernel("pow.Scalar")
_power_by_number = stock_kernel("pow.Tensor_Scalar")


def power(base: Any, exponent: Any) -> torch.Tensor:
    """aten::pow.Tensor_Tensor of tensors that can be broadcast together; one may be a number."""
    dtype = torch.result_type(base, exponent)
    base, exponent = torch.as_tensor(base), torch.as_tensor(exponent)
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


EVEN_POWERS = (0, 0.5, 1, 2, 3, -1, -2)
"""Exponents whose vector and scalar kernels round alike; -0.5 in float32 and float64 only."""
_HALF = (torch.bfloat16, torch.float16)


def is_even(exponent: float, *dtypes: torch.dtype) -> bool:
    """True if a power by `exponent` of tensors of `dtypes` rounds each entry alike anywhere."""
    return exponent in EVEN_POWERS or (exponent == -0.5 and not {*dtypes} & {*_HALF})


def power_by_number(base: torch.Tensor, exponent: Any) -> torch.Tensor:
    """aten::pow.Tensor_Scalar: each entry of a tensor to one number."""
    if not base.is_floating_point() or is_even(exponent, base.dtype):
        result: torch.Tensor = _power_by_number(base, exponent)
        return result
    return as_whole_vectors(lambda padded: _power_by_number(padded, exponent), base)


def watched(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A Python function or method of PyTorch for powers, which takes care of uneven exponents."""

    @wraps(stock)
    def pow(input: Any, exponent: Any, **kwargs: Any) -> Any:
        uneven = (
            type(exponent) in (int, float)
            and exponent not in EVEN_POWERS
            and not kwargs
            and isinstance(input, torch.Tensor)
            and input.is_cpu
            and input.is_floating_point()
        )
        return input.clone().pow_(exponent) if uneven else stock(input, exponent, **kwargs)

    return pow


FUNCTIONS = ((torch, "pow"), (torch.Tensor, "pow"), (torch.Tensor, "__pow__"))
"""PyTorch's Python names of powers, by the object that has them."""
KERNELS: dict[str, Callable[..., Any]] = {
    "pow.Tensor_Tensor": power,
    "pow.Scalar": power_of_number,
    "pow_.Tensor": in_place(power),
    "pow_.Scalar": in_place(power_by_number),
    "pow.Tensor_Tensor_out": into_out("pow.Tensor_Tensor_out", power),
    "pow.Tensor_Scalar_out": into_out("pow.Tensor_Scalar_out", power_by_number),
    "pow.Scalar_out": into_out("pow.Scalar_out", power_of_number),
}
"""Overrides by aten op."""
