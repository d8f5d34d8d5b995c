"""Batch-invariant sums, means, products, norms and log-sum-exp over dimensions on the GPU."""

# ruff: noqa: N803  (compile-time constants are upper-case in Triton)
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
import triton
import triton.language as tl

from detcheck.kernels.triton.rows import (
    FLOATS,
    RowCall,
    as_rows,
    first_call,
    kept_call,
    normalized_dims,
    reduced_shape,
)

Dims = Sequence[int] | int | None


@triton.jit
def row_sum_kernel(
    x, out, length, stride,
    MEAN: tl.constexpr, POWER: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (rows,) = sums, or means, of x's rows (rows, length); one program a row.

    With POWER 1 or 2 it is the norm of that order: of absolute values, or the root of the squares.
    Blocks are added into BLOCK running sums from the start of the row, then those into one.
    """
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), dtype=ACC)
    x += row * stride
    for start in range(0, length, BLOCK):
        part = tl.load(x + start + entries, mask=entries < length - start, other=0.0).to(ACC)
        if POWER == 1:
            part = tl.abs(part)
        elif POWER == 2:
            part = part * part
        acc += part
    total = tl.sum(acc, axis=0)
    if MEAN:
        total /= length
    elif POWER == 2:
        total = tl.sqrt(total)
    tl.store(out + row, total.to(out.dtype.element_ty))


@triton.jit
def _times(a, b):
    return a * b


@triton.jit
def row_product_kernel(x, out, length, stride, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """out (rows,) = products of x's rows (rows, length), in the order of `row_sum_kernel`."""
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    acc = tl.full((BLOCK,), 1.0, dtype=ACC)
    x += row * stride
    for start in range(0, length, BLOCK):
        acc *= tl.load(x + start + entries, mask=entries < length - start, other=1.0).to(ACC)
    tl.store(out + row, tl.reduce(acc, 0, _times).to(out.dtype.element_ty))


@triton.jit
def row_logsumexp_kernel(x, out, length, stride, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """out (rows,) = log of the sum of exponentials of x's rows (rows, length).

    The largest entry is subtracted first, unless it is infinite. One program a row; exponentials
    are added into BLOCK running sums from the start of the row.
    """
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, BLOCK)
    x += row * stride
    largest = tl.full((BLOCK,), -float("inf"), dtype=ACC)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = tl.load(x + start + entries, mask=inside, other=-float("inf")).to(ACC)
        largest = tl.maximum(largest, part)
    top = tl.max(largest, axis=0)
    top = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    sums = tl.zeros((BLOCK,), dtype=ACC)
    for start in range(0, length, BLOCK):
        inside = entries < length - start
        part = tl.load(x + start + entries, mask=inside, other=-float("inf")).to(ACC)
        sums += tl.where(inside, tl.exp(part - top), 0.0)
    result = tl.log(tl.sum(sums, axis=0)) + top
    tl.store(out + row, result.to(out.dtype.element_ty))


def sum_dims(
    x: torch.Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """aten::sum.dim_IntList, accumulated in float32 (float64 for float64).

    Integers, booleans and complex numbers run as stock.
    """
    if x.dtype not in FLOATS or (dtype or x.dtype) not in FLOATS:
        dims = normalized_dims(x, dim)
        exact = x.dtype if x.dtype.is_complex or x.dtype.is_floating_point else torch.int64
        out = x.new_empty(reduced_shape(x, dims, keepdim), dtype=dtype or exact)
        return torch.sum(x, dims, keepdim, dtype=dtype, out=out)
    return _reduced(row_sum_kernel, x, dim, keepdim, dtype, 0.0, MEAN=False, POWER=0)


def mean_dims(
    x: torch.Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """aten::mean.dim, accumulated in float32 (float64 for float64) and divided before rounding."""
    if x.dtype not in FLOATS or (dtype or x.dtype) not in FLOATS:
        dims = normalized_dims(x, dim)
        out = x.new_empty(reduced_shape(x, dims, keepdim), dtype=dtype or x.dtype)
        return torch.mean(x, dims, keepdim, dtype=dtype, out=out)
    return _reduced(row_sum_kernel, x, dim, keepdim, dtype, float("nan"), MEAN=True, POWER=0)


def prod_dim(
    x: torch.Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """aten::prod.dim_int, multiplied in float32 (float64 for float64); other dtypes as stock."""
    if x.dtype not in FLOATS or (dtype or x.dtype) not in FLOATS:
        exact = x.dtype if x.dtype.is_complex or x.dtype.is_floating_point else torch.int64
        shape = reduced_shape(x, normalized_dims(x, dim), keepdim)
        return torch.prod(
            x, dim, keepdim, dtype=dtype, out=x.new_empty(shape, dtype=dtype or exact)
        )
    return _reduced(row_product_kernel, x, dim, keepdim, dtype, 1.0)


def logsumexp(x: torch.Tensor, dim: Dims, keepdim: bool = False) -> torch.Tensor:
    """aten::logsumexp in float32 (float64 for float64); integers are taken as PyTorch's default.

    Complex numbers run as stock.
    """
    if x.dtype.is_complex:
        dims = normalized_dims(x, dim)
        return torch.logsumexp(x, dims, keepdim, out=x.new_empty(reduced_shape(x, dims, keepdim)))
    x = x if x.dtype in FLOATS else x.to(torch.get_default_dtype())
    return _reduced(row_logsumexp_kernel, x, dim, keepdim, None, -inf)


def vector_norm(
    x: torch.Tensor,
    order: float = 2,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """aten::linalg_vector_norm of any order, in float32 (float64 for float64).

    Complex numbers, and orders of infinity, whose result no order of comparison changes, run as
    stock.
    """
    exact = abs(order) == inf or x.numel() == 0
    if exact or x.dtype not in FLOATS or (dtype or x.dtype) not in FLOATS:
        shape = reduced_shape(x, normalized_dims(x, dim), keepdim)
        out = x.new_empty(shape, dtype=dtype or (x.abs() if x.is_complex() else x).dtype)
        return torch.linalg.vector_norm(x, order, dim, keepdim, dtype=dtype, out=out)
    if order in (1, 2):
        power = int(order)
        return _reduced(row_sum_kernel, x, dim, keepdim, dtype, 0.0, MEAN=False, POWER=power)
    wide = torch.float64 if torch.float64 in (x.dtype, dtype) else torch.float32
    terms = (x != 0).to(wide) if order == 0 else x.to(wide).abs().pow(order)
    total = sum_dims(terms, dim, keepdim)
    return (total if order == 0 else total.pow(1 / order)).to(dtype or x.dtype)


def _reduced(
    kernel: Any,
    x: torch.Tensor,
    dim: Dims,
    keepdim: bool,
    dtype: torch.dtype | None,
    of_nothing: float,
    **named: Any,
) -> torch.Tensor:
    """`x` reduced over `dim` by `kernel`; `of_nothing` is the result for a row of no entries."""
    over = dim if dim is None or isinstance(dim, int) else tuple(dim)
    kind = (kernel, *named.values(), over, keepdim, dtype,
            x.shape, x.stride(), x.dtype, x.get_device())  # fmt: skip
    kept = kept_call(kind)
    if kept is not None:
        return kept.only(x)
    dims = normalized_dims(x, dim)
    shape, dtype = reduced_shape(x, dims, keepdim), dtype or x.dtype
    if x.numel() == 0:
        return x.new_full(shape, of_nothing, dtype=dtype)
    rows = as_rows(x, dims)
    wide = torch.float64 in (x.dtype, dtype)
    call = RowCall(kernel, rows, ((shape, dtype),), named, wide=wide)
    return first_call(kind, call, x, rows)[0]
