"""Batch-invariant sum and mean over dimensions on the GPU."""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from detcheck.kernels.triton.launch import on_device
from detcheck.kernels.triton.rows import (
    FLOATS,
    OPTIONS,
    as_rows,
    block_size,
    normalized_dims,
    reduced_shape,
)


@triton.jit
def row_sum_kernel(
    x, out, length, stride, MEAN: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """out (rows,) = sums, or means, of x's rows (rows, length); one program a row.

    Blocks are added into BLOCK running sums from the start of the row, then those into one.
    """
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), dtype=ACC)
    x += row * stride
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        acc += tl.load(x + start + entries, mask=inside, other=0.0).to(ACC)
    total = tl.sum(acc, axis=0)
    if MEAN:
        total /= length
    tl.store(out + row, total.to(out.dtype.element_ty))


def sum_dims(
    x: torch.Tensor,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """aten::sum.dim_IntList, accumulated in float32 (float64 for float64).

    Integers, booleans and complex numbers run as stock.
    """
    if x.dtype not in FLOATS or (dtype or x.dtype) not in FLOATS:
        dims = normalized_dims(x, dim)
        exact = x.dtype if x.dtype.is_complex or x.dtype.is_floating_point else torch.int64
        out = x.new_empty(reduced_shape(x, dims, keepdim), dtype=dtype or exact)
        return torch.sum(x, dims, keepdim, dtype=dtype, out=out)
    return _reduced(x, dim, keepdim, dtype, mean=False)


def mean_dims(
    x: torch.Tensor,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """aten::mean.dim, accumulated in float32 (float64 for float64) and divided before rounding."""
    if x.dtype not in FLOATS or (dtype or x.dtype) not in FLOATS:
        dims = normalized_dims(x, dim)
        out = x.new_empty(reduced_shape(x, dims, keepdim), dtype=dtype or x.dtype)
        return torch.mean(x, dims, keepdim, dtype=dtype, out=out)
    return _reduced(x, dim, keepdim, dtype, mean=True)


def _reduced(
    x: torch.Tensor,
    dim: Sequence[int] | None,
    keepdim: bool,
    dtype: torch.dtype | None,
    *,
    mean: bool,
) -> torch.Tensor:
    dims = normalized_dims(x, dim)
    out = x.new_empty(reduced_shape(x, dims, keepdim), dtype=dtype or x.dtype)
    if out.numel() == 0:
        return out
    if x.numel() == 0:
        return out.fill_(float("nan") if mean else 0.0)
    rows = as_rows(x, dims)
    wide = torch.float64 in (x.dtype, out.dtype)
    with on_device(x):
        row_sum_kernel[(rows.shape[0],)](
            rows, out, rows.shape[1], rows.stride(0), MEAN=mean,
            ACC=tl.float64 if wide else tl.float32, BLOCK=block_size(rows.shape[1]), **OPTIONS,
        )  # fmt: skip
    return out
