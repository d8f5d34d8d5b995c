"""Ops on batches of matrices or signals, computed on the CPU for one entry of the batch at a time.

Libraries compute them in kernels that depend on the size of the batch, or on where an entry starts
in memory. An entry in memory of its own, in a call of its own, always gives the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from detcheck.kernels.cpu.stock import stock_kernel


def transform(op: str) -> Callable[..., Any]:
    """The Fourier transform `op` (x, dims, …) of a tensor of any shape."""
    stock = stock_kernel(op)

    def transformed(x: torch.Tensor, dims: Sequence[int], *args: Any) -> torch.Tensor:
        order = [dim for dim in range(x.dim()) if dim not in {d % x.dim() for d in dims}]
        if not order or not x.numel():
            result: torch.Tensor = stock(x, dims, *args)
            return result
        front = range(len(order))
        entries = x.movedim(order, [*front]).flatten(0, len(order) - 1)
        kept = [dim for dim in range(x.dim()) if dim not in order]
        inner = [kept.index(dim % x.dim()) for dim in dims]
        each = [stock(_own(entry), inner, *args) for entry in entries]
        whole = torch.stack(each).unflatten(0, [x.shape[dim] for dim in order])
        return whole.movedim([*front], order).contiguous()

    return transformed


def matrix_exp(x: torch.Tensor) -> torch.Tensor:
    """aten::linalg_matrix_exp of matrices (…, n, n)."""
    if x.dim() <= 2 or not x.numel():
        result: torch.Tensor = _stock_exp(x)
        return result
    matrices = x.reshape(-1, *x.shape[-2:])
    return torch.stack([_stock_exp(_own(matrix)) for matrix in matrices]).view(x.shape)


def _own(entry: torch.Tensor) -> torch.Tensor:
    return entry.clone(memory_format=torch.contiguous_format)


_stock_exp = stock_kernel("linalg_matrix_exp")
KERNELS: dict[str, Callable[..., Any]] = {
    **{op: transform(op) for op in ("_fft_r2c", "_fft_c2r", "_fft_c2c")},
    "linalg_matrix_exp": matrix_exp,
}
"""Overrides by aten op."""
