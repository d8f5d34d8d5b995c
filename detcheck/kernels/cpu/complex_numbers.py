"""Complex rotary embeddings on the CPU: products as real products and sums.

PyTorch multiplies complex entries in vectors, and the last few of a tensor one by one, which rounds
differently. Overriding `mul` would slow down every model. So the op that makes the rotations,
`polar`, returns a tensor that multiplies in real numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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


def polar(size: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Complex numbers of these absolute values and angles, as `Rotations`."""
    return torch.complex(size * angle.cos(), size * angle.sin()).as_subclass(Rotations)


def _product(left: torch.Tensor, right: Any) -> torch.Tensor:
    """`left` by a real number, as Rotations; or by a tensor, as a plain tensor."""
    a, b = torch.view_as_real(left).unbind(-1)
    if not isinstance(right, torch.Tensor):
        return torch.complex(a * right, b * right).as_subclass(Rotations)
    if not right.is_complex():
        return torch.complex(a * right, b * right)
    c, d = torch.view_as_real(right).unbind(-1)
    return torch.complex(a * c - b * d, a * d + b * c)


KERNELS: dict[str, Callable[..., Any]] = {"polar": polar}
"""Overrides by aten op."""
