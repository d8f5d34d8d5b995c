"""Complex rotary embeddings on the CPU: products as real products and sums.

PyTorch multiplies complex entries in vectors, and the last few of a tensor one by one, which rounds
differently. Overriding `mul` would slow down every model. So the op that makes the rotations,
`polar`, returns a tensor that multiplies in real numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch

from detcheck.kernels.cpu.stock import stock_kernel

_stock_polar = stock_kernel("polar")
_PRODUCTS = frozenset(
    getattr(place, name)
    for place in (torch, torch.Tensor)
    for name in ("mul", "multiply", "__mul__", "__rmul__")
    if hasattr(place, name)
)


class Rotations(torch.Tensor):
    """Complex numbers whose products round each entry alike, wherever it is."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in _PRODUCTS and not kwargs:
                left, right = args
                if isinstance(right, Rotations):
                    left, right = right, left
                return _product(left, right)
            result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_complex():
            return result.as_subclass(cls)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Rotations:
        copied = deepcopy(self.as_subclass(torch.Tensor), memo).as_subclass(Rotations)
        memo[id(self)] = copied
        return copied


def polar(size: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Complex numbers of these absolute values and angles, as `Rotations`.

    Raises RuntimeError if the two differ in dtype, as the stock op.
    """
    if size.dtype != angle.dtype:
        refused: torch.Tensor = _stock_polar(size, angle)
        return refused
    return torch.complex(size * angle.cos(), size * angle.sin()).as_subclass(Rotations)


def _product(left: torch.Tensor, right: Any) -> torch.Tensor:
    """`left` by a number, as Rotations; or by a tensor, as a plain tensor."""
    a, b = torch.view_as_real(left.resolve_conj()).unbind(-1)
    if isinstance(right, complex):
        re, im = right.real, right.imag
        return torch.complex(a * re - b * im, a * im + b * re).as_subclass(Rotations)
    if not isinstance(right, torch.Tensor):
        return torch.complex(a * right, b * right).as_subclass(Rotations)
    if not right.is_complex():
        return torch.complex(a * right, b * right)
    c, d = torch.view_as_real(right.resolve_conj()).unbind(-1)
    return torch.complex(a * c - b * d, a * d + b * c)


KERNELS: dict[str, Callable[..., Any]] = {"polar": polar}
"""Overrides by aten op."""
