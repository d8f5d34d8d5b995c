"""Batch-invariant reductions over dims on the CPU: the stock kernels, never split over threads.

Each thread reduces whole outputs in one order, whatever their number, with one exception: where
there is a single output, PyTorch cuts its elements into a stretch a thread and adds those up. A
row of 49152 alone therefore sums otherwise than among others. Such a reduction is made of two
equal rows instead (a view, not a copy), and the first is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from detcheck.kernels.cpu.stock import stock_kernel

SPLIT_ELEMENTS = 32768
"""From here on a reduction to one output is split (at::internal::GRAIN_SIZE)."""

Kernel = Callable[..., Any]


def over_dims(op: str, dims_at: int) -> Kernel:
    """`op` (x, …) with its dims, an integer or several, as positional argument `dims_at`.

    x of any shape and float dtype; dims, dtype and keepdim as the op itself takes them.
    """
    stock = stock_kernel(op)

    def reduce(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if x.numel() < SPLIT_ELEMENTS or not _single_output(x, args[dims_at - 1]):
            return stock(x, *args, **kwargs)
        pair = x[None].expand(2, *x.shape)
        below = [*args]
        below[dims_at - 1] = _one_further(x, args[dims_at - 1])
        return stock(pair, *below, **kwargs)[0]

    return reduce


def vector_norm(
    x: torch.Tensor,
    order: Any = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """aten::linalg_vector_norm, with a default for its dims."""
    return _vector_norm(x, order, dim, keepdim, dtype=dtype)


_vector_norm = over_dims("linalg_vector_norm", 2)


def _single_output(x: torch.Tensor, dims: int | Sequence[int] | None) -> bool:
    kept = set(range(x.dim())) - set(_positive(x, dims))
    return all(x.shape[dim] == 1 for dim in kept)


def _positive(x: torch.Tensor, dims: int | Sequence[int] | None) -> list[int]:
    """The reduced dims counted from the front; none given means all."""
    if isinstance(dims, int):
        return [dims % x.dim()]
    return [dim % x.dim() for dim in dims] if dims else list(range(x.dim()))


def _one_further(x: torch.Tensor, dims: int | Sequence[int] | None) -> int | list[int]:
    """The same dims behind one more in front."""
    if isinstance(dims, int):
        return dims % x.dim() + 1
    return [dim + 1 for dim in _positive(x, dims)]


KERNELS: dict[str, Kernel] = {
    "mean.dim": over_dims("mean.dim", 1),
    "sum.dim_IntList": over_dims("sum.dim_IntList", 1),
    "prod.dim_int": over_dims("prod.dim_int", 1),
    "logsumexp": over_dims("logsumexp", 1),
    "linalg_vector_norm": vector_norm,
}
"""Overrides by aten op."""
