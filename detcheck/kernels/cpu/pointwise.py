"""Batch-invariant activations on the CPU: every element goes through the vector kernel.

PyTorch runs most of a tensor through vector instructions and the rest, less than a vector at the
end of each thread's stretch, through the scalar library; for silu, gelu and others the two round
differently. Which elements are the rest depends on the size of the batch. Tensors whose stretches
are whole vectors (all usual widths) run as they are; others are padded until they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from detcheck.kernels.cpu.stock import stock_kernel

VECTOR_ELEMENTS = 64
"""A multiple of what any vector loop takes at a time: two AVX-512 registers of half precision."""
SPLIT_ELEMENTS = 16384
"""Below this no activation is split over threads."""
GRAIN_ELEMENTS = 32768
"""Elements that PyTorch finds worth a thread (at::internal::GRAIN_SIZE)."""

Kernel = Callable[..., Any]


def in_whole_vectors(op: str, dtypes: frozenset[torch.dtype] | None = None) -> Kernel:
    """The activation `op` (x, …) of a tensor of any shape, the same for each element anywhere.

    `dtypes` are those in which the stock op needs it; None: all floats.
    """
    stock = stock_kernel(op)

    def activate(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if (dtypes is not None and x.dtype not in dtypes) or _whole(x):
            return stock(x, *args, **kwargs)
        padded = x.new_zeros(_padded_size(x.numel()))
        padded[: x.numel()] = x.reshape(-1)
        return stock(padded, *args, **kwargs)[: x.numel()].view(x.shape)

    return activate


def in_place(kernel: Kernel) -> Kernel:
    """`kernel` writing its result over its input."""

    def activate_(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return x.copy_(kernel(x, *args, **kwargs))

    return activate_


def _whole(x: torch.Tensor) -> bool:
    """Whether every thread's stretch of `x` is whole vectors; integers have no vector kernel."""
    if not x.is_floating_point():
        return True
    return x.is_contiguous() and x.numel() % _unit(x.numel()) == 0


def _unit(size: int) -> int:
    """Elements of which a tensor of about `size` must be a multiple, for whole vectors throughout.

    Kernels are split over as many threads as there are grains, or over all from 16384 on (gelu).
    """
    if size < SPLIT_ELEMENTS:
        return VECTOR_ELEMENTS
    threads = torch.get_num_threads()
    return VECTOR_ELEMENTS * math.lcm(threads, min(threads, -(-size // GRAIN_ELEMENTS)))


def _padded_size(size: int) -> int:
    while size % (unit := _unit(size)) or not size:
        size += unit - size % unit
    return size


_OUT_OF_PLACE = {
    op: in_whole_vectors(op) for op in ("silu", "sigmoid", "gelu", "softplus", "elu", "mish")
}
KERNELS: dict[str, Kernel] = _OUT_OF_PLACE | {
    f"{op}_": in_place(_OUT_OF_PLACE[op]) for op in ("silu", "sigmoid", "gelu", "elu", "mish")
}
"""Overrides by aten op. tanh, exp, relu and their like round alike in both kernels."""
