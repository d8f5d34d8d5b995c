"""What reductions over rows share: one program a row, blocks of a fixed size from its start.

A row's bits then depend on its own length alone. Each kernel reads a row as it lies, by its
stride; a reduction over other dimensions is brought into rows first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton

from detcheck.kernels.triton.launch import NUMERICS

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
MAX_BLOCK = 4096
"""Longest block that a program holds at once: 32 values a thread at 4 warps."""
NUM_WARPS = 4

OPTIONS = {"num_warps": NUM_WARPS, **NUMERICS}


def block_size(length: int) -> int:
    """The block for rows of a length: a function of the length alone."""
    return min(MAX_BLOCK, triton.next_power_of_2(max(length, 16)))


def as_rows(x: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """`x` as (rows, length), the dimensions in `dims` folded into rows' entries, in their order.

    A view where the layout allows, with entries of a row side by side; else a copy.
    """
    if x.dim() == 0:
        return x.reshape(1, 1)
    kept = [dim for dim in range(x.dim()) if dim not in dims]
    rows = x.permute(*kept, *dims).reshape(-1, _size(x, dims))
    return rows if rows.stride(1) == 1 else rows.contiguous()


def normalized_dims(x: torch.Tensor, dims: Sequence[int] | None) -> list[int]:
    """`dims` counted from 0 and in growing order; all of them for None or none."""
    if not dims:
        return list(range(x.dim()))
    return sorted({dim % x.dim() for dim in dims}) if x.dim() else []


def reduced_shape(x: torch.Tensor, dims: Sequence[int], keepdim: bool) -> list[int]:
    """Shape of a reduction of `x` over `dims` (normalized)."""
    if keepdim:
        return [1 if dim in dims else size for dim, size in enumerate(x.shape)]
    return [size for dim, size in enumerate(x.shape) if dim not in dims]


def _size(x: torch.Tensor, dims: Sequence[int]) -> int:
    size = 1
    for dim in dims:
        size *= x.shape[dim]
    return size
